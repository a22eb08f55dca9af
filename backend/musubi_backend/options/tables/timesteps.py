"""Which noise levels are trained, and how much each counts."""

from __future__ import annotations

from ..option import NOTHING, TRAIN, WEIGHTS, Group, Option

GROUPS = (
    Group(
        "Timesteps",
        (TRAIN,),
        (
            Option(
                "--timestep_sampling",
                default="sigma",
                choices=(
                    *("sigma", "uniform", "sigmoid", "shift", "flux_shift", "flux2_shift", "ideogram4_shift", "qwen_shift", "krea2_shift"),
                    *("logsnr", "qinglong_flux", "qinglong_qwen"),
                ),
                help="How noise levels are drawn. shift, with the model's --discrete_flow_shift, suits video; uniform treats all alike; "
                "sigmoid prefers the middle; the *_shift ones follow the size of the image; sigma draws by --weighting_scheme.",
                effect=WEIGHTS,
            ),
            Option(
                "--discrete_flow_shift",
                float,
                1.0,
                minimum=0.01,
                maximum=100,
                help="With shift sampling, how strongly training leans to high noise: above 1 the layout and the motion, at 1 no lean.",
                effect=WEIGHTS,
            ),
            Option(
                "--sigmoid_scale",
                float,
                1.0,
                minimum=0.001,
                maximum=100,
                advanced=True,
                help="With sigmoid and shift sampling, how wide the draw spreads: larger reaches more of the very clean and very noisy "
                "levels.",
                effect=WEIGHTS,
            ),
            Option(
                "--weighting_scheme",
                default="none",
                choices=("logit_normal", "mode", "cosmap", "sigma_sqrt", "none"),
                advanced=True,
                help="logit_normal and mode decide how sigma sampling draws; cosmap and sigma_sqrt weigh the loss by noise level; none "
                "does neither.",
                effect=WEIGHTS,
            ),
            Option(
                "--logit_mean",
                float,
                0.0,
                minimum=-20,
                maximum=20,
                advanced=True,
                help="Middle of the logit_normal and logsnr draws.",
                effect=WEIGHTS,
            ),
            Option(
                "--logit_std",
                float,
                1.0,
                minimum=0.001,
                maximum=20,
                advanced=True,
                help="Spread of the logit_normal and logsnr draws.",
                effect=WEIGHTS,
            ),
            Option(
                "--mode_scale",
                float,
                1.29,
                minimum=-1,
                maximum=1.75,
                advanced=True,
                help="Bend of the mode draw: 0 is uniform, larger prefers the middle.",
                effect=WEIGHTS,
            ),
            Option(
                "--min_timestep",
                int,
                minimum=0,
                maximum=999,
                advanced=True,
                help="Lowest noise level that is trained, of 1000. Default: 0.",
                effect=WEIGHTS,
            ),
            Option(
                "--max_timestep",
                int,
                minimum=1,
                maximum=1000,
                advanced=True,
                help="Highest noise level that is trained, of 1000. Default: 1000.",
                effect=WEIGHTS,
            ),
            Option(
                "--preserve_distribution_shape",
                bool,
                False,
                advanced=True,
                help="Between the lowest and highest level, cut the distribution off instead of squeezing it in.",
                effect=WEIGHTS,
            ),
            Option(
                "--num_timestep_buckets",
                int,
                minimum=2,
                maximum=1000,
                unit="buckets",
                advanced=True,
                help="Draw equally often from N ranges of noise level within an epoch: steadier training on few items, 4 to 10 is "
                "usual. Default: off.",
                effect=WEIGHTS,
            ),
            Option(
                "--guidance_scale",
                float,
                1.0,
                minimum=0,
                maximum=100,
                advanced=True,
                help="Embedded guidance: the value given to models that were distilled with one. Others only note it in the metadata.",
                effect=WEIGHTS,
            ),
            Option(
                "--show_timesteps",
                choices=("image", "console"),
                advanced=True,
                help="Show which noise levels these settings draw, as an image or as text, and train nothing.",
                effect=NOTHING,
            ),
        ),
    ),
)
