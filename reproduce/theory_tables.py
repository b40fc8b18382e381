"""The tables of theory_answers.md, from figures/theory.json and the records of released models."""

from __future__ import annotations

from reproduce.doc_tables import compare, read_json, read_record, table

BETAS = {
    "β = 0": "cifar10_conv_beta0",
    "β = 0.1": "cifar10_conv_beta0.1",
    "β = 1": "cifar10_conv",
    "β = 4": "cifar10_conv_beta4",
}
AUTOENCODER_AND_VAE = {"autoencoder": "cifar10_fc_ae", "VAE": "cifar10_fc"}


def theory(question: str) -> dict:
    return read_json("figures/theory.json")[question]


def with_records(measured: dict[str, dict], folders: dict[str, str]) -> dict[str, dict]:
    """Numbers of theory.json by model, together with the test numbers of the same models."""
    return {name: read_record(folders[name])["test"] | values for name, values in measured.items()}


def kl_term() -> str:
    models = with_records(theory("q1"), BETAS)
    for numbers in models.values():
        numbers["mismatch_nats"] = numbers["kl_nats"] - numbers["index_nats"]
    return compare(models, {
        "reconstruction (nats)": "{reconstruction_nats:,.1f}",
        "KL (nats)": "{kl_nats:,.1f}",
        "… information about which of the 10,000 images it is": "{index_nats:.1f}",
        "… the rest: all codes against the prior": "{mismatch_nats:,.1f}",
        "total = negative ELBO (nats)": "{total_nats:,.1f}",
        "noise in the code, mean σ": "{sigma:.4f}",
        "MSE of decoded means": "{mse:.4f}",
        "MSE of decoded samples of q(z given x)": "{sample_mse:.4f}",
        "mean distance of a code from the origin (prior: 11.3)": "{code_norm:.1f}",
        "distance of the mean code from the origin (prior: 0)": "{mean_norm:.1f}",
        "variance of the codes, largest and smallest over all directions (prior: 1)":
            "{variance_max:.1f} and {variance_min:#.2g}",
        "KL between a Gaussian fitted to the codes and the prior (nats)": "{fit_kl_nats:.1f}",
        "draws of the prior inside a cloud of one of 45,000 training images":
            "{draws_in_clouds:.1%}",
        "codes of test images inside such a cloud": "{test_codes_in_clouds:.1%}",
    })  # fmt: skip


def gradients() -> str:
    rows = {}
    for name, numbers in theory("q2")["estimators"].items():
        # 16 images give no more than two digits.
        rows[name] = {key: rounded(value, 2) for key, value in numbers.items()}
    columns = {"variance": "{variance}", "times the pathwise one": "{times_pathwise}"}
    return table("estimator", rows, columns)


def rounded(value: float, digits: int) -> str:
    """With so many digits that count, the others zeros: 12,345 → 12,000."""
    return f"{float(f'{value:.{digits}g}'):,.15g}"


def fixed_codes() -> str:
    numbers = theory("q3")
    models = {name: numbers[name] for name in AUTOENCODER_AND_VAE}
    real = numbers["real images"]["contrast"]
    return compare(with_records(models, AUTOENCODER_AND_VAE), {
        "reconstruction (nats)": "{reconstruction_nats:,.1f}",
        "MSE of reconstructions": "{mse:.4f}",
        "distance of the mean code from the origin (prior: 0)": "{mean_norm:.1f}",
        "spread of the codes per dimension (prior: 1)": "{code_std:.2f}",
        "largest variance of the codes over all directions (prior: 1)": "{variance_max:.1f}",
        "directions, of 128, that hold 99% of the variance of the codes": "{directions}",
        f"contrast of samples of N(0, I) (real images: {real:.3f})": "{prior_contrast:.3f}",
        "contrast of samples of a Gaussian fitted to the codes": "{fitted_contrast:.3f}",
        "distance of samples of N(0, I) from photographs (Task 1)": "{prior_distance:,.0f}",
        "distance of samples of the fitted Gaussian": "{fitted_distance:,.0f}",
    })  # fmt: skip


def plane() -> str:
    return compare(theory("plane"), {
        "MSE of reconstructions": "{mse:.4f}",
        "distance of the mean code from the origin (prior: 0)": "{mean_norm:.1f}",
        "distance of the farthest code from the origin": "{farthest:.1f}",
        "codes in the square, which holds 99.5% of the prior": "{in_square:.1%}",
    })  # fmt: skip


def smooth_space() -> str:
    models = theory("q4")
    for numbers in models.values():
        numbers["nearest_cloud"] = rounded(numbers["nearest_cloud"], 3)
    return compare(models, {
        "width of the clouds, mean σ": "{sigma:.4f}",
        "usual distance of a sample from its mean": "{radius:.3g}",
        "mean distance between the means μ of two images": "{distance:.1f}",
        "change for a random step of that length / the change between two means":
            "{relative_change:.2f}",
        "change for a tenth of a difference of means / a tenth of the change for all of it":
            "{slope_along_codes:.2f}",
        "burnt pixels (below 0.02 or above 0.98) in reconstructions": "{burnt_copies:.1%}",
        "burnt pixels after a random step as long as the mean distance of two means":
            "{burnt_after:.1%}",
        "unevenness of the steps on a straight line": "{unevenness:.3f}",
        "contrast of the reconstructions": "{end_contrast:.3f}",
        "distance of the nearest cloud, $D_B$": "{nearest_cloud}",
        "information about which of 45,000 images it is (at most 10.7 nats)": "{index_nats:.1f}",
    })  # fmt: skip


MAKERS = (
    kl_term, gradients, fixed_codes, plane, smooth_space,
)  # fmt: skip
TABLES = {make.__name__: make for make in MAKERS}
