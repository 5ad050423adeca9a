"PKD over many depths and in every precision"
import pytest, torch
from fsd.baselines.pkd import patient_layers, pkd, pkd_sequence


@pytest.mark.parametrize('choose', ['skip', 'last'])
@pytest.mark.parametrize('depth_s, depth_t', [(2, 2), (2, 4), (3, 6), (4, 12), (6, 12), (6, 24)])
def test_layers_rise_and_end_below_the_last(depth_s, depth_t, choose):
    student, teacher = zip(*patient_layers(depth_s, depth_t, choose))
    assert list(student) == list(range(1, depth_s))
    steps = {b - a for a, b in zip(teacher, teacher[1:])}
    assert steps <= {depth_t // depth_s if choose == 'skip' else 1}
    assert teacher[-1] == (depth_t - depth_t // depth_s if choose == 'skip' else depth_t - 1)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision(dtype):
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5, 6).to(dtype).unbind()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    s.requires_grad_()
    for loss, m in ((lambda a, b: pkd(a[:, :, 0], b[:, :, 0]), None), (lambda a, b: pkd(a[:, :, 0], b[:, :, 0], False), None),
                    (pkd_sequence, None), (lambda a, b: pkd_sequence(a, b, mask), mask)):
        value = loss(s, t)
        with torch.autocast('cpu', dtype=torch.bfloat16): assert loss(s, t) == value
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(value.double(), loss(s.double(), t.double()), rtol=1e-6, atol=0)
        g, = torch.autograd.grad(value, s)
        assert g.dtype == dtype and g.isfinite().all() and g.any()
        if m is not None: assert not g[:, m == 0].any()


def test_any_kind_of_sequence_and_mask():
    s, t = torch.randn(2, 3, 4, 5, 6)
    mask = torch.arange(5) < torch.tensor([5, 2, 1, 3])[:, None]
    assert pkd(list(s[:, :, 0]), tuple(t[:, :, 0])) == pkd(s[:, :, 0], t[:, :, 0])
    assert len({pkd_sequence(s, t, m).item() for m in (mask, mask.long(), mask.float())}) == 1
    assert pkd_sequence(s, t, torch.ones(4, 5)) == pkd_sequence(s, t)
    assert pkd_sequence(s, t, torch.zeros(4, 5)) == 0
    with pytest.raises(ValueError, match='as many layers'): pkd([], [])
