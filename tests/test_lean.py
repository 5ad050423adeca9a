"""The lean form, that of a GPU, where there is none: on `meta`, which has no numbers to read and no other device beside it, and on a CPU against float64."""
import itertools
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fsd import forms, losses
from fsd.cka import unit_of, unit_structure
from fsd.clusters import gram_of_rows
from fsd.forms import lean_form
from fsd.memory import GlobalStructure
from fsd.methods import Objective, find_method, methods
from fsd.passes import Features
from fsd.settings import Knobs
from fsd.terms import Pair

N, L, D, K = 8, 6, 48, 12
lengths = torch.tensor([6, 5, 4, 6, 6, 4, 5, 6])
mask = torch.arange(L) < lengths[:, None]

class Watch(TorchDispatchMode):
    "While it is on, no operator may read a value back or make float64; counts those that compute."
    reads = {'_local_scalar_dense', 'is_nonzero', 'nonzero', 'equal', 'masked_select', 'item', '_unique2'}
    views = {'view', '_unsafe_view', 't', 'transpose', 'permute', 'expand', 'slice', 'select', 'detach', 'unsqueeze', 'squeeze', 'alias', 'as_strided',
             'split', 'unbind', 'diagonal', 'empty', 'empty_like', 'new_empty', 'new_empty_strided', 'empty_strided', '_reshape_alias', 'unfold', 'lift_fresh'}
    def __init__(self): super().__init__(); self.n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix('aten::')
        masks = [o for o in args[1] if o is not None and o.dtype==torch.bool] if name in ('index', 'index_put') else []
        assert name not in self.reads and not masks, f'{name} reads a value back'
        out = func(*args, **(kwargs or {}))
        for o in tree_flatten(out)[0]: assert not isinstance(o, torch.Tensor) or o.dtype!=torch.float64, f'{name} makes float64'
        self.n += name not in self.views
        return out

def shown(needs, rng, grad):
    "Random `Features` with what `needs` asks for."
    def randn(*shape): return torch.randn(*shape, generator=rng)
    f = Features(randn(N, 3).requires_grad_(grad), mask.clone())
    hidden = {l: randn(N, L, D).requires_grad_(grad) for k, l in sorted(needs) if k in ('hidden', 'cls')}
    for k, l in sorted(needs):
        if k=='hidden': f.hidden[l] = hidden[l]
        elif k=='cls': f.cls[l] = hidden[l][:, 0]
        else: getattr(f, k)[l] = (randn(N, 4, L, L).softmax(-1) if k=='attentions' else randn(N, 4, L, D//4)).requires_grad_(grad)
    return f

def setting(method, padding='paper', **knobs):
    "An objective and what it is given."
    rng = torch.Generator().manual_seed(0)
    pair = Pair(Knobs(padding=padding, **knobs), 3, 6, D, memory=torch.randn(K, L, D, generator=rng))
    o = Objective(find_method(method), pair)
    return o, shown(o.needs_s, rng, True), shown(o.needs_t, rng, False), torch.randint(3, (N,), generator=rng)

def to(f, device):
    "`f` on `device`, the student's as leaves."
    move = lambda x: x.detach().to(device).requires_grad_(x.requires_grad)
    parts = {n: {l: move(x) for l, x in getattr(f, n).items()} for n in ('hidden', 'cls', 'attentions', 'queries', 'keys', 'values')}
    return Features(move(f.logits), f.mask.to(device), **parts)

kinds = [(m, p, {}) for m in methods for p in ('paper', 'masked')] + [
    ('fsd', p, dict(debiased=d, reduction=r)) for p in ('paper', 'masked') for d in (False, True) for r in losses.reductions if d or r!='log_of_mean']

@pytest.mark.parametrize('method, padding, knobs', kinds, ids=lambda o: o if isinstance(o, str) else '-'.join(map(str, o.values())))
def test_an_objective_runs_without_numbers_in_float32_on_one_device(method, padding, knobs):
    o, s, t, labels = setting(method, padding, **knobs)
    o, s, t, labels = o.to('meta'), to(s, 'meta'), to(t, 'meta'), labels.to('meta')
    loss, values = o(s, t, labels)
    with Watch():
        loss, values = o(s, t, labels)
        loss.backward()
    assert loss.is_meta and loss.shape==() and loss.dtype==torch.float32 and all(v.is_meta for v in values.values())

@pytest.mark.parametrize('method', methods)
def test_both_forms_of_an_objective_agree_and_the_lean_one_reads_nothing(method):
    "Values can be read on a CPU without a word, so here every operator is watched; the first step sends weights and constants to the device"
    for padding in ('paper', 'masked'):
        o, s, t, labels = setting(method, padding)
        s2, o2 = to(s, 'cpu'), setting(method, padding)[0]
        with lean_form():
            with torch.no_grad(): o(s2, t, labels)
            with Watch():
                a, _ = o(s2, t, labels)
                a.backward()
        s = to(s, 'cpu')
        b, _ = o2(s, t, labels)
        b.backward()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        leaves = [[x for n in ('hidden', 'cls', 'attentions', 'queries', 'keys', 'values') for x in getattr(f, n).values()] + [*p.parameters()] for f, p in ((s2, o), (s, o2))]
        for x, y in zip(*leaves): assert (x.grad is None)==(y.grad is None) and (x.grad is None or (x.grad - y.grad).norm() <= 1e-4*y.grad.norm() + 1e-7)

most = dict(nods=8, vkd=19, fsd_i=50, fsd_l=48, fsd_g=101, fsd=163, pkd=31, rkd=72, minilm=78)
@pytest.mark.parametrize('method', most)
def test_an_objective_launches_no_more_than_it_did(method):
    "Operators that compute, forward and backward, whatever the sizes: what a step takes on a GPU that waits for the next launch"
    o, s, t, labels = setting(method)
    with lean_form():
        o(s, t, labels)
        with Watch() as w: o(s, t, labels)[0].backward()
    assert w.n <= most[method]

def states(offset=0., wide=20, dtype=torch.float32):
    "Of student and teacher, with a mean of `offset` deviations, and widths of their own."
    g = torch.Generator().manual_seed(0)
    t, mean = torch.randn(N, L, 16, generator=g), torch.randn(L, wide, generator=g)
    s = t @ torch.randn(16, wide, generator=g)/4 + torch.randn(N, L, wide, generator=g)
    return (s + offset*mean).to(dtype), (t + offset*mean[:, :16]).to(dtype)

def gradient(f, s, *args, **kw):
    s = s.detach().requires_grad_()
    value = f(s, *args, **kw)
    return value.detach(), torch.autograd.grad(value, s)[0]

def error(a, b): return ((a.double() - b).norm() / b.norm()).item()

def eq_cka(x, y, debiased):
    "The formulas, of samples (n, d) in float64"
    n, k, l = len(x), x @ x.T, y @ y.T
    if not debiased:
        h = torch.eye(n, dtype=x.dtype) - 1/n
        hsic = lambda k, l: (k @ h @ l @ h).trace()
    else:
        off = 1 - torch.eye(n, dtype=x.dtype)
        def hsic(k, l):
            k, l = k*off, l*off
            return (k @ l).trace() + k.sum()*l.sum()/((n-1)*(n-2)) - 2*(k @ l).sum()/(n-2)
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()

def reduced(c, reduction, debiased):
    log = (lambda c: torch.where(c>.01, c.clamp(min=.01).log(), torch.tensor(.01).log() + c/.01 - 1)) if debiased else (lambda c: (c.abs() + 1e-8).log())
    return {'log_of_mean': -log(c.mean()), 'mean_of_log': -log(c).mean(), 'one_minus': 1 - c.mean()}[reduction]

def direct_intra(s, t, m, reduction, debiased):
    m = torch.ones(N, L).bool() if m is None else m
    return reduced(torch.stack([eq_cka(a[o], b[o], debiased) for a, b, o in zip(s, t, m)]), reduction, debiased)

def direct_local(s, t, m, reduction, debiased):
    s, t = (o if m is None else o.masked_fill(~m[..., None], 0) for o in (s, t))
    return reduced(eq_cka(s.flatten(1), t.flatten(1), debiased)[None], reduction, debiased)

@pytest.mark.parametrize('reduction', losses.reductions)
@pytest.mark.parametrize('debiased', [False, True])
@pytest.mark.parametrize('f, direct', [(losses.intra, direct_intra), (losses.local, direct_local)])
def test_structures_are_the_formulas(f, direct, debiased, reduction):
    for m, offset in itertools.product((None, mask, mask.long()), (0., 50.)):
        s, t = states(offset)
        b = None if m is None else m.bool()
        want = gradient(direct, s.double(), t.double(), b, reduction, debiased)
        side = unit_structure(t, m, debiased) if f is losses.intra else unit_structure(losses.flat(t, m), None, debiased)
        with lean_form():
            both = gradient(f, s, t, m, reduction, debiased), gradient(f, s, None, m, reduction, debiased, side=side)
        for got in both:
            assert abs(got[0]-want[0]) < 1e-5 and error(got[1], want[1]) < 1e-4

def direct_global(g, s, t, m, memory_t):
    s, t = ((o if m is None else o.masked_fill(~m[..., None], 0)).flatten(1) for o in (s, t))
    k, l = g.memory_s.flatten(1), memory_t.flatten(1)
    cosine = lambda x, y: torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
    far = lambda x, y: (x[:, None] - y).norm(dim=-1)
    f = torch.nn.functional.mse_loss
    return reduced(eq_cka(k, l, g.debiased)[None], g.reduction, g.debiased) + g.gamma_m*f(far(s, k), far(t, l)) + (1-g.gamma_m)*f(cosine(s, k), cosine(t, l))

@pytest.mark.parametrize('debiased', [False, True])
@pytest.mark.parametrize('gamma_m, reduction', [(0., 'one_minus'), (.3, 'log_of_mean'), (1., 'mean_of_log')])
def test_global_structure_is_the_formula(gamma_m, reduction, debiased):
    for m, offset in itertools.product((None, mask), (0., 50.)):
        s, t = states(offset)
        memory_t = torch.randn(K, L, 16, generator=torch.Generator().manual_seed(3)) + t.mean(0)
        g = GlobalStructure(memory_t, 20, gamma_m, reduction, debiased)
        g.memory_s.data += s.mean(0)
        double = GlobalStructure(memory_t.double(), 20, gamma_m, reduction, debiased).double()
        double.memory_s.data.copy_(g.memory_s.data)
        want = gradient(lambda s: direct_global(double, s, t.double(), m, memory_t.double()), s.double())
        want_m = torch.autograd.grad(direct_global(double, s.double(), t.double(), m, memory_t.double()), double.memory_s)[0]
        with lean_form():
            for kw in (dict(h_t=t), dict(h_t=None, side=g.side(t, m))):
                got = gradient(g, s, mask=m, **kw)
                got_m = torch.autograd.grad(g(s, mask=m, **kw), g.memory_s)[0]
                assert error(got[0], want[0]) < 1e-4 and error(got[1], want[1]) < 1e-3 and error(got_m, want_m) < 1e-4

@pytest.mark.parametrize('debiased', [False, True])
def test_what_is_kept_of_a_teacher_costs_a_gradient_less_than_a_thousandth(debiased):
    "Squares between tokens in half precision, inner products around the mean of all examples in single, under autocast too"
    for m, offset, bf16 in itertools.product((None, mask), (0., 50.), (False, True)):
        s, t = states(offset)
        rows = losses.flat(t, m)
        sides = {losses.intra: unit_structure(t, m, debiased).half(), losses.local: unit_of(gram_of_rows(rows, 1e9, 'cpu'), debiased)}
        for f, side in sides.items():
            want = gradient(dict(zip(sides, (direct_intra, direct_local)))[f], s.double(), t.double(), m, 'log_of_mean', debiased)
            with lean_form(), torch.autocast('cpu', torch.bfloat16, enabled=bf16): got = gradient(f, s, None, m, debiased=debiased, side=side)
            assert abs(got[0]-want[0]) < 1e-4 and error(got[1], want[1]) < 1e-3

@pytest.mark.parametrize('m', [None, mask], ids=['paper', 'masked'])
@pytest.mark.parametrize('name, debiased', [(n, d) for n in ('intra', 'local', 'global') for d in (False, True)] + [('rkd', False)])
def test_half_precision_and_autocast_lose_nothing_but_what_the_states_had_lost(name, debiased, m):
    from fsd.baselines.rkd import rkd
    s, t = (o.bfloat16().float() for o in states(50.))
    memory_t, mean = torch.randn(K, L, 16, generator=torch.Generator().manual_seed(3)) + t.mean(0), s.mean(0)
    def f(s, t):
        if name!='global': return dict(intra=losses.intra, local=losses.local, rkd=rkd)[name](s, t, m, **dict(debiased=debiased) if name!='rkd' else {})
        g = GlobalStructure(memory_t, 20, debiased=debiased)
        g.memory_s.data += mean
        return (g.double() if s.dtype==torch.float64 else g)(s, t, m)
    want = gradient(f, s.double(), t.double())
    with lean_form(), torch.autocast('cpu', torch.bfloat16):
        for a, b in ((s, t), (s.bfloat16(), t), (s, t.bfloat16())):
            value, grad = gradient(f, a, b)
            assert value.dtype==torch.float32 and abs(value-want[0]) < 1e-4*(1 + abs(want[0])) and grad.dtype==a.dtype
            assert error(grad, want[1]) < (1e-3 if a.dtype==torch.float32 else 1e-2) # the gradient of a half is a half

def test_a_gradient_of_the_gradient_is_refused():
    s, t = states()
    with lean_form():
        for f in (lambda s: losses.intra(s, t), lambda s: losses.local(s, t), lambda s: GlobalStructure(torch.randn(K, L, 16), 20)(s, t), lambda s: losses.unit(s).sum()**2):
            x = s.clone().requires_grad_()
            d, = torch.autograd.grad(f(x), x, create_graph=True)
            with pytest.raises(RuntimeError, match='once_differentiable'): d.square().sum().backward()

@pytest.mark.parametrize('scale', [1e9, 1e13, 1e19, 1e30])
def test_what_float32_cannot_square_is_loud(scale):
    s, t = states()
    with lean_form():
        for f in (losses.intra, losses.local):
            for a, b in ((s*scale, t), (t, s*scale)): assert not f(a, b).isfinite()

def test_bad_numbers_stay_bad_and_padding_is_not_read():
    s, t = states()
    for bad in (float('nan'), float('inf')):
        broken, padded = s.clone(), s.masked_fill(~mask[..., None], bad)
        broken[0, 0, 0] = bad
        with lean_form():
            for f in (losses.intra, losses.local, GlobalStructure(torch.randn(K, L, 16), 20)):
                assert not f(broken, t).isfinite() and f(padded, t, mask).isfinite()

def test_the_form_goes_with_the_device():
    x = torch.ones(2)
    assert not forms.lean(x) and forms.lean(x.to('meta'))
    with lean_form():
        assert forms.lean(x)
        with lean_form(False): assert not forms.lean(x) and not forms.lean(x.to('meta'))
    assert not forms.lean(x)

def test_the_watch_sees():
    for bad in (lambda: torch.ones(2).double(), lambda: bool(torch.ones(2).all()), lambda: torch.ones(2)[torch.tensor([True, False])], lambda: torch.ones(2).nonzero()):
        with pytest.raises(AssertionError), Watch(): bad()
