import torch

from seedbed.models.decoder import Decoder
from seedbed.optimizers.adamw import AdamW


def test_only_matrices_of_body_and_head_decay():
    model = Decoder(num_layers=1, d_model=8, num_heads=1, attention_bias=True).build(vocab_size=5)
    optimizer = AdamW(weight_decay=0.1).build([(model.roles[n], p) for n, p in model.named_parameters()])
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, p in model.named_parameters():
        expected = p.ndim == 2 and name != "embedding.weight"
        assert (id(p) in decayed) is expected, name
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_a_step_is_the_textbook_s():
    p = torch.nn.Parameter(torch.tensor([[1.0]]))
    from seedbed.core.records import Role

    optimizer = AdamW(learning_rate=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5).build([(Role("mlp", 0, "up"), p)])
    p.grad = torch.tensor([[2.0]])
    optimizer.step()
    assert abs(float(p.detach()) - (1.0 * (1 - 0.1 * 0.5) - 0.1)) < 1e-6
