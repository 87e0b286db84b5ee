"""Methods against rounding, in the error of the outputs, and against what they must not change."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from mllm_export.export.decoder_values import LayoutStorage
from mllm_export.quantize.inputs import Inputs
from mllm_export.quantize.layout import LAYOUTS
from mllm_export.quantize.method import METHODS, Fold, Layer, output_error
from mllm_export.quantize.methods import gptq

ROWS, COLS = 48, 256


def correlated(count=2048, cols=COLS, seed=0):
    """Inputs of low rank with a few channels that stand out, as behind a norm."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((count, cols // 4)) @ generator.standard_normal(
        (cols // 4, cols)
    )
    sizes = np.where(generator.random(cols) < 0.05, 12.0, 1.0)
    return ((mixed / 8 + 0.3 * generator.standard_normal((count, cols))) * sizes).astype(np.float32)


def layer_of(layout, values, folds=(), weighted=True):
    generator = np.random.default_rng(1)
    weights = {
        "norm": 1 + 0.2 * generator.standard_normal(COLS).astype(np.float32),
        "a": generator.standard_normal((ROWS, COLS), dtype=np.float32),
        "b": generator.standard_normal((ROWS, COLS), dtype=np.float32),
    }
    inputs = Inputs(gram=values.T @ values, count=len(values))
    return Layer(
        weights=weights,
        inputs={"a": inputs, "b": inputs},
        storage={n: LayoutStorage(layout=LAYOUTS[layout], weighted=weighted) for n in "ab"},
        folds=folds,
    )


FOLD = (Fold(into=("a", "b"), out_of=("norm",)),)


def stored(layer, name):
    if name in layer.fitted:
        return layer.fitted[name].grid.values(layer.fitted[name].codes)
    return layer.storage[name].round(layer.weights[name], layer.importance(name))


@pytest.mark.parametrize("layout", ["Q4_0", "Q4_K", "Q6_K"])
def test_gptq_keeps_the_outputs_closer_than_weighted_rounding(layout):
    values = correlated()
    before = layer_of(layout, values)
    after = METHODS["gptq"].choose(before)
    for name in "ab":
        inputs, original = before.inputs[name], before.weights[name]
        made = output_error(stored(after, name) - original, inputs)
        assert made < 0.7 * output_error(stored(before, name) - original, inputs)
        # The same in float64 on the inputs themselves: the moments are what they claim to be.
        outputs = values.astype(np.float64) @ (stored(after, name) - original).T
        assert np.isclose(made, (outputs**2).sum(), rtol=1e-3)


def test_gptq_of_uncorrelated_inputs_is_rounding_to_the_nearest_step():
    layer = layer_of("Q4_K", correlated())
    plain = Inputs(gram=np.eye(COLS, dtype=np.float32), count=1)
    from mllm_export.quantize.methods.gptq import choose_codes

    grid = layer.storage["a"].fit(layer.weights["a"], None)
    codes = choose_codes(layer.weights["a"], grid, plain)
    assert np.array_equal(codes, grid.codes(layer.weights["a"]))


def test_gptq_works_on_the_same_bits_whatever_threads_blas_has():
    values = correlated(cols=1024)
    factors = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads, user_api="blas"):
            factors.append(gptq._inverse_factor(values.T @ values))
    for one in factors[1:]:
        assert np.array_equal(one, factors[0])


def test_gptq_survives_inputs_that_are_always_zero():
    values = correlated()
    values[:, ::2] = 0
    after = METHODS["gptq"].choose(layer_of("Q4_0", values))
    assert all(np.isfinite(after.weights[name]).all() for name in "ab")


def test_gptq_leaves_a_layout_without_even_steps_alone():
    before = layer_of("IQ4_NL", correlated())
    assert not METHODS["gptq"].choose(before).fitted


def test_awq_computes_the_same_function_and_loses_less_when_rounded():
    values = correlated()
    before = layer_of("Q4_0", values, FOLD)
    after = METHODS["awq"].choose(before)
    scale = after.scales["norm"]
    assert not np.allclose(scale, 1)
    for name in "ab":
        whole = (values * before.weights["norm"]) @ before.weights[name].T
        moved = (values * after.weights["norm"]) @ after.weights[name].T
        assert np.allclose(whole, moved, rtol=1e-3, atol=1e-2)
        error = stored(after, name) / scale - before.weights[name]
        plain = stored(before, name) - before.weights[name]
        assert output_error(error, before.inputs[name]) < output_error(plain, before.inputs[name])


def test_awq_touches_nothing_that_no_fold_names():
    before = layer_of("Q4_0", correlated())
    assert METHODS["awq"].choose(before).weights == before.weights


def test_awq_then_gptq_keep_the_outputs_closer_than_either():
    values = correlated()
    before = layer_of("Q4_0", values, FOLD)

    def loss(*methods):
        layer = before
        for method in methods:
            layer = METHODS[method].choose(layer)
        scale = layer.scales.get("norm", np.float32(1))
        return output_error(stored(layer, "a") / scale - before.weights["a"], before.inputs["a"])

    assert loss("awq", "gptq") < min(loss("awq"), loss("gptq")) * 1.05 < loss()


@pytest.mark.parametrize("layout", ["Q4_0", "Q4_1", "Q4_K"])
def test_hqq_has_no_more_of_the_norm_it_minimises_than_rounding(layout):
    before = layer_of(layout, correlated(), weighted=False)

    def norm(layer):
        return (np.abs(stored(layer, "a") - before.weights["a"]) ** 0.7).sum()

    after = METHODS["hqq"].choose(before)
    assert norm(after) <= norm(before) * (1 + 1e-6)


def test_rtn_changes_nothing():
    before = layer_of("Q4_0", correlated())
    assert METHODS["rtn"].choose(before) is before


def test_every_method_says_whether_it_needs_inputs_and_does_without_where_it_says_so():
    for name in METHODS.names():
        before = layer_of("Q4_0", correlated(), FOLD)
        blind = Layer(weights=before.weights, inputs={}, storage=before.storage, folds=before.folds)
        after = METHODS[name].choose(blind)
        if METHODS[name].needs_inputs:
            assert after.weights == before.weights
