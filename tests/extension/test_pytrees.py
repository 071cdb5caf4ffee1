"""Any pytree may be a field: a network and a dict of arrays, in a family whose fit is by gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

import jaxem as jem
from jaxem.core.constraints import parameter, parameter_tree, positive
from jaxem.core.coordinates import from_coordinates, to_coordinates


@partial(jax.tree_util.register_dataclass, data_fields=["inner", "outer"], meta_fields=["activation"])
@dataclasses.dataclass(frozen=True)
class Network:
    """What an Equinox module is: a dataclass that is a pytree, with leaves and what is static."""

    inner: Array
    outer: Array
    activation: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return (self.outer[:, None] * self.activation(self.inner[:, None] * x[None])).sum(0)


def plain() -> Network:
    return Network(jnp.array([0.5, -0.3, 1.0]), jnp.array([0.2, 0.1, 0.4]), jnp.tanh)


def equinox() -> Any:
    eqx = pytest.importorskip("equinox")

    class Module(eqx.Module):
        inner: Array
        outer: Array
        activation: Callable[[Array], Array] = eqx.field(static=True)
        __call__ = Network.__call__

    return Module(*(getattr(plain(), field.name) for field in dataclasses.fields(Network)))


@jem.structure
class Curve(jem.Family):
    """y is normal around network(x) + shift + slope x; a row is (x, y)."""

    scalar = False
    noise: Float[Array, "*batch"] = parameter(positive)
    network: Any = parameter_tree()
    line: dict[str, Array] = parameter_tree()
    known: dict[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    def log_density(self, columns: Float[Array, "2 n"]) -> Float[Array, "*batch n"]:
        x, y = columns
        error = y - self.network(x) - self.line["shift"] - self.line["slope"] * x
        noise = self.noise[..., None]
        error = error.reshape((1,) * self.noise.ndim + (-1,))
        return -((error / noise) ** 2) / 2 - jnp.log(noise) - 0.5 * np.log(2 * np.pi).item()


@pytest.fixture(params=[plain, equinox])
def model(request: pytest.FixtureRequest) -> Curve:
    line = {"shift": jnp.array(0.1), "slope": jnp.array(-0.2)}
    return Curve(jnp.array(1.0), request.param(), line, {"unit": jnp.ones(2)})


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    at = rng.uniform(-3, 3, 80)
    return np.column_stack([at, 2 * np.tanh(2 * at) + 0.5 + 0.1 * rng.normal(size=80)])


NAMES = ["noise", "network.inner", "network.outer", "line.shift", "line.slope"]


def test_counts_and_coordinates_go_through_it(model: Curve, x: np.ndarray) -> None:
    assert jem.free_parameters(model) == 1 + 3 + 3 + 2
    mixture = jem.Mixture([0.5, 0.5], dataclasses.replace(model, noise=jnp.array([0.5, 2.0])))
    assert jem.free_parameters(mixture) == 1 + 2 + 3 + 3 + 2
    free, model_at = jem.coordinates(model)
    assert list(free) == NAMES
    np.testing.assert_array_equal(model_at(free).log_prob(x), model.log_prob(x))
    back = from_coordinates(to_coordinates(model), model)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    np.testing.assert_array_equal(back.known["unit"], [1, 1])


def test_gradients_are_those_of_finite_differences(model: Curve, x: np.ndarray) -> None:
    free, model_at = jem.coordinates(model)

    @jax.jit
    def total(free: dict[str, Array]) -> Array:
        return model_at(free).log_prob(x).sum()

    slope = jax.jit(jax.grad(total))(free)
    for name in NAMES:
        step = jnp.ravel(jnp.zeros_like(free[name])).at[0].set(1e-5).reshape(free[name].shape)
        up, down = (total({**free, name: free[name] + sign * step}) for sign in (1, -1))
        np.testing.assert_allclose(np.ravel(slope[name])[0], (up - down) / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_a_descent_moves_it_and_its_leaves_are_saved_by_whoever_likes(
    model: Curve, x: np.ndarray, tmp_path: Path
) -> None:
    free, model_at = jem.coordinates(model)
    descent = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.002, momentum=0.9))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        slope = jax.grad(lambda free: -model_at(free).log_prob(x).mean())(carry[0])
        updates, state = descent.update(slope, carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    (free, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, length=6000))((free, descent.init(free)))
    fitted = model_at(free)
    assert fitted.noise < 0.3
    np.testing.assert_array_equal(fitted.known["unit"], [1, 1])
    leaves, structure = jax.tree.flatten(fitted)
    np.savez(tmp_path / "leaves.npz", *leaves)
    with np.load(tmp_path / "leaves.npz") as file:
        back = jax.tree.unflatten(structure, [jnp.asarray(file[name]) for name in file.files])
    np.testing.assert_array_equal(back.log_prob(x), fitted.log_prob(x))
    with pytest.raises(TypeError, match=r"model\.network is a \w+; only jaxem's own models and registered classes"):
        jem.save(tmp_path / "model", fitted)
