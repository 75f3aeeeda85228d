"""An adapter file holds an adapter bit for bit, for every method."""
import pytest

from adapters import adapted_layer
from adapters.adapted import replace_layers
from adapters.lam import Lam
from finetune.adapted_model import load_adapter, save_adapter
from finetune.run import Run
from quant.grid import Block
from tests.adapters.test_every_combination import KINDS, ids, linear_names, quantized_model, same_bits
from tests.strategies import nonzero_adapter, possible_lams

LAMS = {"lora": Lam(1, 1), "irqlora": Lam(1, 1), "blora": Lam(2, 2), "qalora": Lam(4, 1), "qablora": Lam(4, 8),
        "peqa": Lam(4, 8)}


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_an_adapter_saved_and_loaded_has_the_same_bits(kind, tmp_path):
    def adapted(seed):
        model = quantized_model(("intminmax", 3, False, False), Block(4, 8))

        def adapt(name, layer):
            sizes = layer.out_features, layer.in_features
            lam = LAMS.get(kind[0].name) or possible_lams(kind[0], [Lam(4, 8), Lam(2, 2), Lam(4, 1), Lam(1, 1)], sizes,
                                                          block=layer.block)[0]
            return adapted_layer(layer, nonzero_adapter(kind[0], *sizes, lam, seed=seed, operators=kind[1],
                                                        block=layer.block).float())
        replace_layers(model, linear_names(model), adapt)
        return model
    first, second, run = adapted(0), adapted(50), Run(tmp_path)
    assert not same_bits(first, second)
    save_adapter(first, run)
    load_adapter(second, run)
    assert same_bits(first, second)
