"""The Nile at Aswan, 1871 to 1970: how much of what changes from year to year is the river, and how much is noise?

The local level model: a level that wanders, and a flow that is measured about it. Two variances are not known, and EM
finds them; everything else is held as it is. Durbin and Koopman (2012, section 2.2) have 15,099 and 1,469.1.

    python docs/examples/nile.py
"""

import sys

import jax
import numpy as np

import jaxem as jem

jax.config.update("jax_enable_x64", True)  # variances to five digits

NILE = """1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 1100 1210 1150
          1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 831 726 456 824 702 1120 1100 832
          764 821 768 845 864 862 698 845 744 796 1040 759 781 865 845 944 984 897 822 1010 771 676 649 846 812 742 801
          1040 860 874 848 890 744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746 919 718 714 740"""
FLOW = np.array([float(flow) for flow in NILE.split()])[:, None]  # in 10^8 cubic metres a year
YEAR = np.arange(1871, 1971)

LOCAL_LEVEL = jem.LinearGaussianSSM(
    initial_mean=[0.0],
    initial_covariance=[[1.0]],
    transition=[[1.0]],
    transition_noise=[[1e4]],
    emission=[[1.0]],
    emission_bias=[0.0],
    emission_noise=[[1e4]],
    held=("transition", "emission", "emission_bias"),
    diffuse=True,  # nothing is known of the level before the first year
)


def main() -> None:
    """Fit, smooth, leave forty years out, and look ahead."""
    # EM crawls here (the level hides most of what it does); SQUAREM takes the same steps, and extrapolates them.
    fits = {
        "EM": jem.fit(LOCAL_LEVEL, FLOW, tol=1e-10),
        "SQUAREM": jem.fit(LOCAL_LEVEL, FLOW, jem.SQUAREM(jem.EM()), tol=1e-10),
    }
    for name, fit in fits.items():
        noise, moves = fit.model.emission_noise.item(), fit.model.transition_noise.item()
        sys.stdout.write(f"{name:8} noise {noise:8.1f}  level {moves:7.1f}  after {int(fit.passes):3} passes\n")
        np.testing.assert_allclose((noise, moves), (15099, 1469.1), rtol=1e-3)
        assert fit.converged
    assert 4 * fits["SQUAREM"].passes < fits["EM"].passes
    model = fits["SQUAREM"].model

    # The first year only says where the level begins: the exact diffuse likelihood is that of the others.
    np.testing.assert_allclose(model.log_prob([FLOW])[0], -632.5456, atol=1e-4)

    # In 1899 the first dam at Aswan was begun: the smoothed level falls there.
    level = model.smooth(FLOW)
    before, after = level.mean[0, YEAR == 1895, 0].item(), level.mean[0, YEAR == 1903, 0].item()
    sys.stdout.write(f"level in 1895 {before:.0f}, in 1903 {after:.0f}\n")
    assert before - after > 150

    # Years that are not there are NaN. The level is known less well in their midst, and what is left still counts.
    gaps = np.where(((YEAR > 1890) & (YEAR <= 1910) | (YEAR > 1930) & (YEAR <= 1950))[:, None], np.nan, FLOW)
    spread = np.sqrt(model.smooth(gaps).covariance[0, :, 0, 0])
    sys.stdout.write(
        f"level known to {spread[YEAR == 1880].item():.0f}, in a gap to {spread[YEAR == 1900].item():.0f}\n"
    )
    assert spread[YEAR == 1900] > 1.5 * spread[YEAR == 1880]

    # The level stays where it is, and is known less well with every year.
    states, flow = model.forecast(FLOW, 10)
    np.testing.assert_allclose(flow.mean[0, :, 0], states.mean[0, 0, 0], rtol=1e-12)
    growth = np.diff(flow.covariance[0, :, 0, 0])
    np.testing.assert_allclose(growth, model.transition_noise.item(), rtol=1e-9)
    sys.stdout.write(f"1971: {flow.mean[0, 0, 0]:.0f} +- {np.sqrt(flow.covariance[0, 0, 0, 0]):.0f}\n")


if __name__ == "__main__":
    main()
