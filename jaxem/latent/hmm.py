"""Hidden Markov models: each step of a sequence is in one of K hidden states, which depends on the last."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem.chains import sharded
from jaxem.chains.best_path import best_score
from jaxem.chains.chain import Chain
from jaxem.chains.normalizer import log_normalizer, plain
from jaxem.chains.sampling import sampled_score
from jaxem.chains.scan_exact import draws, forward, probabilities
from jaxem.core import semirings
from jaxem.core.arguments import as_key, optional, whole
from jaxem.core.compilation import program
from jaxem.core.constraints import parameter, simplex
from jaxem.core.linalg import HIGHEST, lead, matmul
from jaxem.core.pytree import replace
from jaxem.data.missing import hot_deck, known_locally
from jaxem.data.prepare import prepare
from jaxem.data.sequences import Sequences, as_sequences
from jaxem.distributions.base import Distribution, Labelled
from jaxem.distributions.product import told
from jaxem.distributions.registry import structure
from jaxem.distributions.statistics.moments import shares
from jaxem.distributions.words import as_family
from jaxem.latent.base import chosen, log_potential, same_members
from jaxem.latent.mixture import Mixture, Plan, start_work
from jaxem.latent.sequence_model import SequenceModel, Steps

SUMS = {semirings.log_sum: log_normalizer, semirings.maximum: best_score}
"""The sums over paths that have a derivative rule of their own."""


def _over_paths(add: Any) -> Any:
    """The sum over paths that goes with a sum over states."""
    if isinstance(add, semirings.Sampled):
        return partial(sampled_score, add.key)
    return SUMS.get(add, partial(plain, add=add))


@structure
class HMM(SequenceModel):
    """A hidden Markov model whose states are the members of `emission`, its last member axis.

    log p(x_1 .. x_T) = log sum over paths z of initial[z_1] p(x_1 | z_1) prod_t transition[z_t-1, z_t] p(x_t | z_t)

    One row of such a model is a sequence: `log_prob` has one number for each, and weights are weights of sequences.

    Args:
        initial: `[..., K]`, on the simplex.
        transition: `[..., K, K]`, each row on the simplex: from the row's state to the column's. A probability of
            zero stays zero.
        emission: any distribution with `batch_shape [..., K]`, a mixture among them.

    Raises:
        ValueError: probabilities that do not sum to one, or shapes that do not match.

    >>> import jaxem as jem
    >>> model = jem.HMM([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jem.Bernoulli([0.2, 0.8]))
    >>> model.log_prob([[1.0, 1.0, 0.0], [0.0]]).round(4).tolist(), model.decode([[1.0, 1.0, 0.0]]).tolist()
    ([-2.3413, -0.6931], [[1, 1, 1]])
    """

    shards_time = True
    initial: Float[Array, "*batch k"] = parameter(simplex, axes=("state",))
    transition: Float[Array, "*batch k k"] = parameter(simplex, axes=("state", "state"))
    emission: Distribution

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.initial.shape
        if self.transition.shape != (*shape, shape[-1]):
            raise ValueError(
                f"HMM: transition has shape {self.transition.shape}; with an initial of shape {shape} it must be "
                f"{(*shape, shape[-1])}"
            )
        if self.emission.batch_shape != shape:
            raise ValueError(f"HMM: emission has batch shape {self.emission.batch_shape}; it must be {shape}")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the members: that of `initial` without its last axis."""
        return self.initial.shape[:-1]

    @property
    def child(self) -> Distribution:
        """The emission."""
        return self.emission

    def in_use(self, used: Array) -> dict[str, Any]:
        """States that some path from the start reaches."""
        size, dtype = self.initial.shape[-1], self.initial.dtype
        ways = (self.transition > 0).astype(dtype) + lead(jnp.eye(size, dtype=dtype), self.transition.ndim)
        for _ in range((size - 1).bit_length()):
            ways = (matmul(ways, ways) > 0).astype(dtype)
        first = (self.initial > 0).astype(dtype)[..., None, :]
        reached = used[..., None] & (matmul(first, ways)[..., 0, :] > 0)
        return {"transition": reached, "emission": reached}

    @classmethod
    def start(
        cls,
        key: Any,
        family: Any,
        x: Any,
        states: int,
        *,
        weight: Any = None,
        labels: Any = None,
        restarts: int | None = None,
        method: str = "mixed",
    ) -> Self:
        """A model to start from: a mixture of all steps, and how its components follow each other.

        Args:
            key: a JAX random key, or a whole number as its seed.
            family: the kind of emission, as in `Mixture.start`.
            x: sequences: a list of arrays, `Sequences`, one array `[T]` or `[T, D]`, or several `[S, T, D]`.
            states: K.
            weight: `[S]` weights of the sequences.
            labels: known states, `[S, T]` or a list of arrays; -1 where unknown.
            restarts: how many starts; the model then has a leading axis of this length.
            method: as in `Mixture.start`.

        Raises:
            ValueError: as `Mixture.start`.

        >>> import jax, jaxem as jem
        >>> x = jem.Sequences.from_list([[0.0, 1.0, 9.0, 8.0, 9.0], [9.0, 0.0, 1.0]])
        >>> jem.HMM.start(jax.random.key(0), jem.Poisson, x, 2).transition.shape
        (2, 2)
        """
        key, states = as_key(key), whole(states, "states")
        x, weight, labels = prepare(as_sequences(x), weight, labels, states)
        here = x.local()
        steps = here.values.reshape(len(x) * x.steps, *x.values.shape[2:])
        family = told(as_family(family), steps, here.weight_of_steps(known_locally(weight)))
        return _start(key, x, weight, labels, Plan(cls, family, states, optional(restarts, "restarts"), method))

    def potentials(self) -> tuple[Float[Array, "*batch k"], Float[Array, "*batch k k"]]:
        """The potentials log initial and log transition; -inf, with zero gradient, where a probability is zero."""
        return log_potential(self.initial), log_potential(self.transition)

    def log_normalizer(self, potentials: tuple[Array, Array], evidence: Array, add: Any, x: Any) -> Array:
        """The sum over all paths, by forward-backward; with `maximum` for `add`, the best path (Viterbi 1967)."""
        over_paths = _over_paths(add)
        if x.axis is not None and over_paths is not log_normalizer:
            raise ValueError(
                "the steps of x are spread over devices, where only the sum over all paths can be taken, not the best "
                "path, or one in between, or a drawn one; spread sequences, not their steps"
            )

        def one(initial: Array, transition: Array, evidence: Array) -> Array:
            chain = Chain(initial[:, None], transition[..., None], self.time_first(evidence, x), x.length)
            return over_paths(chain) if x.axis is None else sharded.log_normalizer(x.axis, chain)

        for _ in self.batch_shape:
            one = jax.vmap(one)
        return one(*potentials, evidence)

    def with_counts(self, counts: tuple[Array, Array], child: Distribution) -> Self:
        """The model with each row as the shares of its counts; a state that was never left keeps its row."""
        initial, transition = shares(counts[0], self.initial), shares(counts[1], self.transition)
        return replace(self, initial=initial, transition=transition, emission=child)

    def coincides(self) -> Array:
        """Whether two states have the same emission and the same transitions."""
        members = self.transition, self.emission
        within = jnp.any(self.emission.coincides(), axis=-1)
        return within | jnp.any(same_members(members, jnp.ones(self.initial.shape, bool)), axis=(-2, -1))

    def occupancy(self) -> Float[Array, "*batch k"]:
        """The share of steps spent in each state in the long run: the stationary distribution."""
        return self.stationary()

    def stationary(self) -> Float[Array, "*batch k"]:
        """The share of time spent in each state in the long run, setting out from `initial`."""
        stay = jnp.eye(self.initial.shape[-1], dtype=self.initial.dtype)
        lazy = (self.transition + lead(stay, self.transition.ndim)) / 2
        # Staying put half of the time changes no stationary distribution, and no cycle survives it.
        squared = jax.lax.fori_loop(0, 64, lambda _, a: shares(matmul(a, a), a), lazy)
        return matmul(self.initial[..., None, :], squared)[..., 0, :]

    def forecast(self, x: Any, steps: int) -> tuple[Float[Array, "s h k"], Mixture]:
        """Forecasts of the steps after each sequence.

        Args:
            x: sequences.
            steps: how many steps ahead.

        Returns:
            `(states, emission)`: the probabilities of the states, `[S, steps, K]`, and the predictive distribution of
            what is seen, a `Mixture` with `batch_shape (S, steps)`.

        Raises:
            ValueError: the model is a batch of several.
        """
        steps = whole(steps, "steps")
        if self.batch_shape:
            raise ValueError(f"HMM: forecast needs one model; this is a batch of shape {self.batch_shape}")
        states = _forecast(self, self.observe(x), steps)
        members = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*states.shape[:2], *leaf.shape)), self.emission)
        return states, Mixture(states, members)

    def drawn_rows(self, key: Array, x: Steps, n: int) -> Array:
        """Draws of rows: a path by its posterior, and what its states draw, `[T x S, ...]`."""
        which, what = jax.random.split(key)
        initial, transition = self.potentials()
        chain = Chain(initial[:, None], transition[..., None], self.time_first(self.evidence_of(x), x), x.length)
        path = draws(which, chain, forward(chain), 1)[:, :, 0]
        return chosen(self.emission.drawn_rows(what, x.rows, x.seen.size), path.ravel(), 0)

    def rows_like(self, key: Array, x: Sequences) -> Array:
        """A path of states for each sequence, and what they draw at its steps."""
        first, then, what = jax.random.split(key, 3)
        members, count = self.batch_shape, len(x) * x.steps
        path = _paths(self, first, then, len(x), x.steps).reshape(*members, count)
        drawn = chosen(self.emission.rows_like(what, x.values.reshape(count, *x.values.shape[2:])), path, len(members))
        return drawn.reshape(*members, len(x), x.steps, *drawn.shape[len(members) + 1 :])

    def sample(self, key: Array, n: int, steps: int = 100) -> Array:
        """`n` sequences from each member, `[*batch_shape, n, steps, *event_shape]`.

        Args:
            key: a JAX random key.
            n: how many sequences.
            steps: how long each is.
        """
        return _sample(self, key, n, whole(steps, "steps"))


@program(start_work, static_argnums=4)
def _start(key: Array, x: Sequences, weight: Array, labels: Any, plan: Plan) -> HMM:
    rows, there = x.values.reshape(len(x) * x.steps, *x.values.shape[2:]), jnp.where(x.there, weight[:, None], 0)
    row_weight = jnp.where(x.seen, weight[:, None], 0).ravel()
    if x.patterns:
        rows = hot_deck(jax.random.fold_in(key, 1), rows, row_weight)
    known = None if labels is None else labels.ravel()
    mixture = Mixture.start(
        key, plan.family, rows, plan.components,
        weight=row_weight, labels=known, restarts=plan.restarts, method=plan.method,
    )  # fmt: skip
    each = mixture.posterior(rows if known is None else Labelled(rows, known))
    each = each.reshape(*each.shape[:-2], len(x), x.steps, plan.components)
    pairs = there[:, 1:], each[..., :-1, :], each[..., 1:, :]
    follow = jnp.einsum("st,...sti,...stj->...ij", *pairs, precision=HIGHEST)
    first = jnp.einsum("s,...si->...i", weight, each[..., 0, :], precision=HIGHEST)
    # One of each besides: a probability of zero is a place that EM cannot leave.
    return plan.model(shares(first + 1, first), shares(follow + 1, follow), mixture.components)


def _sample_work(model: HMM, key: Array, n: int, steps: int) -> float:
    return 10.0 * n * steps * model.work_per_row * math.prod((*model.batch_shape, *model.event_shape))


@program(_sample_work, static_argnums=(2, 3))
def _sample(model: HMM, key: Array, n: int, steps: int) -> Array:
    first, then, what = jax.random.split(key, 3)
    members = model.batch_shape
    path = _paths(model, first, then, n, steps).reshape(*members, n * steps)
    drawn = chosen(model.emission.sample(what, n * steps), path, len(members))
    return drawn.reshape(*members, n, steps, *drawn.shape[len(members) + 1 :])


def _paths(model: HMM, first: Array, then: Array, n: int, steps: int) -> Int[Array, "*batch n t"]:
    """States of `n` sequences."""
    initial, transition = model.potentials()
    state = jax.random.categorical(first, initial[..., None, :], shape=(*model.batch_shape, n))

    def step(state: Array, key: Array) -> tuple[Array, Array]:
        rows = jnp.take_along_axis(transition, state[..., None], axis=-2)
        return jax.random.categorical(key, rows), state

    _, states = jax.lax.scan(step, state, jax.random.split(then, steps))
    return jnp.moveaxis(states, 0, -1)


@partial(jax.jit, static_argnums=2)
def _forecast(model: HMM, x: Steps, steps: int) -> Float[Array, "s h k"]:
    evidence = model.evidence(model.emission.log_prob(x.rows), x)
    initial, transition = model.potentials()
    filtered = forward(Chain(initial[:, None], transition[..., None], model.time_first(evidence, x), x.length))

    def ahead(now: Array, _: None) -> tuple[Array, Array]:
        now = matmul(now, model.transition)
        return now, now

    return jnp.swapaxes(jax.lax.scan(ahead, probabilities(filtered.last).T, None, length=steps)[1], 0, 1)
