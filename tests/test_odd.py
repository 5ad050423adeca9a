"""Odd input over every numerical function: the value that float64 gives, or one clear error; never a wrong number in silence."""
import contextlib, traceback
import numpy as np, pytest, torch
from fsd import cka, losses, memory
from fsd.clusters import assign, kmeans, released_memory
from fsd.baselines import ckd, geometry, internal, minilm, pkd, pkt, relations, rkd

N,L,D,E = 6,5,4,3 # examples, positions, width of the teacher, of the student

def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def layered(f, **kw):
    "A loss of layers as one of states: three layers made of them, padding at the same positions."
    def call(h_s, h_t, mask=None):
        return f(*([h, h.roll(1, -1), h.flip(-1)] if isinstance(h, torch.Tensor) and h.ndim==3 and h.layout==torch.strided else [h]*3
                   for h in (h_s, h_t)), mask, **kw)
    return call

def structure(**kw):
    def call(h_s, h_t, mask=None):
        double = isinstance(h_s, torch.Tensor) and h_s.dtype==torch.float64
        g = memory.GlobalStructure(randn(5, L, h_t.shape[-1] if getattr(h_t, 'ndim', 0)==3 else D, seed=3), getattr(h_s, 'shape', (0, 0, E))[-1] if getattr(h_s, 'ndim', 0) else E, **kw)
        return (g.double() if double else g).requires_grad_(False)(h_s, h_t, mask)
    return call

states = dict(intra=losses.intra, local=losses.local, sp=relations.sp, cckd=relations.cckd, pkt=pkt.pkt, rkd=rkd.rkd,
    intra_debiased=lambda *a, **k: losses.intra(*a, **k, debiased=True), local_debiased=lambda *a, **k: losses.local(*a, **k, debiased=True),
    mean_of_log=lambda *a, **k: losses.intra(*a, **k, reduction='mean_of_log'), pcka=lambda *a, **k: relations.pcka(*a, **k, size=2),
    procrustes=geometry.procrustes, gram_distance=geometry.gram_distance, word_distance=layered(ckd.word_distance),
    word_angle=layered(ckd.word_angle, window=3), layer_distance=layered(ckd.layer_distance), layer_angle=layered(ckd.layer_angle),
    pkd_sequence=lambda h_s, h_t, mask=None: pkd.pkd_sequence([h_s], [h_t], mask),
    global_structure=structure(gamma_m=.3), global_debiased=structure(debiased=True))
pairs = dict(linear_cka=cka.linear_cka, linear_cka_debiased=lambda x, y: cka.linear_cka(x, y, debiased=True),
    minibatch_cka=lambda x, y: cka.minibatch_cka([(x, y), (x, y)]), rkd_distance=rkd.rkd_distance, rkd_angle=rkd.rkd_angle,
    alignment=relations.alignment, alignment_rows=lambda x, y: relations.alignment(x, y, True),
    hsic=lambda x, y: cka.hsic(cka.gram(x), cka.gram(y)), hsic_debiased=lambda x, y: cka.hsic(cka.gram(x), cka.gram(y), True),
    memory_structure=lambda x, y: memory.memory_structure(*(o[:, None] if isinstance(o, torch.Tensor) and o.ndim else o for o in (x, y))))
alike = dict(pkd=lambda x, y: pkd.pkd([x], [y]), pkd_raw=lambda x, y: pkd.pkd([x], [y], normalise=False), cls_cosine=internal.cls_cosine,
    rcka=relations.rcka, rcka_soft=lambda x, y: relations.rcka(x, y, temperature=2.), kd=lambda x, y: losses.kd(x, y, 2.),
    binary_kd=lambda x, y: losses.binary_kd(x, y, 2.), mse_logits=losses.mse_logits)
relative = {p.__name__: lambda h_s, h_t, p=p: p(h_s, h_t) for p in (memory.distance, memory.cosine)} | {
    f'feature_structure_{p.__name__}': lambda h_s, h_t, p=p: memory.feature_structure(h_s, h_t, h_s, h_t, p) for p in (memory.distance, memory.cosine)}
single = {f.__name__: f for f in (cka.center, cka.gram, losses.unit, relations.inner, relations.cosines, geometry.unit_gram, pkt.choices,
    losses.yes_or_no)} | dict(gram_free=lambda x: cka.gram(x, free=True), u_center=lambda x: cka.u_center(cka.gram(x)),
    gaussian=lambda x: relations.gaussian(relations.cosines(x), .4, 2), fidelity=lambda x: geometry.fidelity(*[geometry.unit_gram(x)]*2),
    similarity_loss=losses.similarity_loss, debiased_loss=lambda x: losses.similarity_loss(x, debiased=True))
cubes = dict(flat=losses.flat, patches=lambda h: relations.patches(h, 2))
heads = dict(value_relation=minilm.value_relation, relation=lambda s, t, mask=None: minilm.relation(s, t, mask, heads=1),
    minilm_v2=lambda s, t, mask=None: minilm.minilm_v2(s, t, s, t, s, t, mask, heads=1),
    minilm=lambda s, t, mask=None: minilm.minilm(*[(o@o.mT).softmax(-1) if isinstance(o, torch.Tensor) and o.ndim==4 and
        o.is_floating_point() and o.layout==torch.strided else o for o in (s, t)], s, t, mask))
labelled = dict(ce=lambda x: losses.ce(x, torch.arange(len(x))%3), smoothed_ce=lambda x: losses.smoothed_ce(x, torch.arange(len(x))%3, .1),
    bce=lambda x: losses.bce(x, (randn(*x.shape)>0).long()))
kinds = [(states, ((N, L, E), (N, L, D))), (pairs, ((N, E), (N, D))), (alike, ((N, D), (N, D))), (relative, ((N, L, D), (N, L, D))),
         (single, ((N, D),)), (cubes, ((N, L, D),)), (heads, ((N, 2, L, E), (N, 2, L, D))), (labelled, ((N, 3),))]
everything = {n: (f, shapes if n!='pkd_sequence' else ((N, L, D),)*2) for fs, shapes in kinds for n, f in fs.items()}
whatever_scale = {*states, *pairs, *alike, *relative, *single} - {'global_structure', 'global_debiased', 'hsic', 'hsic_debiased', 'pkd_raw',
    'rcka_soft', 'kd', 'binary_kd', 'mse_logits', 'feature_structure_distance', 'center', 'gram', 'inner', 'yes_or_no', 'u_center',
    'similarity_loss', 'debiased_loss', 'minibatch_cka', 'distance'}

def args_of(name): return [randn(*s, seed=i+1) for i, s in enumerate(everything[name][1])]

def result(f, args, context=contextlib.nullcontext, **kw):
    "Value and gradients."
    args = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() and a.layout==torch.strided else a for a in args]
    with context(): value = f(*args, **kw)
    if not isinstance(value, torch.Tensor) or not value.requires_grad or not value.numel(): return value, []
    weights = torch.linspace(.5, 2, value.numel(), dtype=torch.float64).view_as(value).to(value) # a plain sum is constant for some
    grads = torch.autograd.grad((value*weights).sum(), [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad], allow_unused=True)
    return value.detach(), [g for g in grads if g is not None]

def largest(*xs): return max((float(x.double().abs().max()) for x in xs if x.numel()), default=0.)

def agree(a, b, tol, loud=False, floor=0.):
    "Whether `a` is the float64 `b` within rounding, or not finite where float32 cannot hold what it takes."
    if not a.isfinite().all() and (loud or largest(b)>1e36): return True
    return largest(a.double()-b.double()) <= tol*largest(b) + floor + 1e-37

def wrong(name, args, context=contextlib.nullcontext, huge=False, tol=1e-4):
    "What is wrong with the function of this name, if anything, set against itself in float64."
    f = everything[name][0]
    low = any(a.dtype in (torch.float16, torch.bfloat16) for a in args)
    value, grads = result(f, args, context)
    right, want = result(f, [a.double() for a in args])
    if value.is_floating_point() and not right.isfinite().all(): return f'{name}: float64 gives {right.flatten()[:3].tolist()}'
    loud = huge and name not in whatever_scale
    x = largest(*args)
    if not agree(value, right, 2e-2 if low else tol, loud, 1e-7 if right.ndim==0 else 1e-6*x): return f'{name}: {value.flatten()[:3].tolist()}, not {right.flatten()[:3].tolist()}'
    if value.isfinite().all():
        for g, w in zip(grads, want):
            floor = (1e-2 if low else 1e-5) * max(largest(right), 1.)/max(x, 1e-37) # of a gradient that is 0
            if not agree(g, w, 3e-2 if low else 10*tol, loud, floor): return f'{name}: gradient {g.flatten()[:3].tolist()}, not {w.flatten()[:3].tolist()}'

def refusal(call):
    "What is wrong with how `call` refuses, if anything."
    try: value = call()
    except (TypeError, ValueError) as e:
        where = traceback.extract_tb(e.__traceback__)[-1].filename
        return None if '/fsd/' in where and ' not ' in str(e) else f'{type(e).__name__} from {where}: {str(e)[:200]}'
    except Exception as e: return f'{type(e).__name__}: {str(e)[:200]}'
    return f'accepted: {value}'

def none(found):
    assert not (found := [o for o in found if o]), '\n'.join(found)

def put(value):
    def change(x):
        x = x.clone()
        x.view(-1)[0] = value
        return x
    return change

odd = {
    'an empty batch': lambda x: x[:0], 'one example': lambda x: x[:1], 'two examples': lambda x: x[:2], 'three examples': lambda x: x[:3],
    'equal examples': lambda x: x[:1].repeat(N, *(1,)*(x.ndim-1)), 'two equal examples': lambda x: x[[0, 0, *range(2, N)]],
    'constant features': lambda x: torch.full_like(x, 3.3), 'zeros': torch.zeros_like, 'one example of zeros': lambda x: torch.cat([0*x[:1], x[1:]]),
    'a scale of 1e19': lambda x: x*1e19, 'a scale of 1e30': lambda x: x*1e30, 'the largest numbers': lambda x: x/x.abs().max()*3e38,
    'a scale of 1e-20': lambda x: x*1e-20, 'a scale of 1e-30': lambda x: x*1e-30, 'denormal numbers': lambda x: x*1e-40,
    'one entry of 1e30': put(1e30), 'an offset of 5000': lambda x: x+5000, 'every other entry in memory': lambda x: torch.stack([x, 0*x], -1)[...,0],
    'transposed in memory': lambda x: x.transpose(0, -1).contiguous().transpose(0, -1), 'expanded': lambda x: x[:1].expand_as(x),
    'a width of 1': lambda x: x[...,:1], 'a width of 0': lambda x: x[...,:0], 'more features than examples': lambda x: x.repeat(*(1,)*(x.ndim-1), 20).cos(),
    'float16': torch.Tensor.half, 'bfloat16': torch.Tensor.bfloat16, 'int64': lambda x: (3*x).long(), 'bool': lambda x: x>0}

@pytest.mark.parametrize('case', odd)
def test_is_the_value_of_float64_for(case):
    but = {'a width of 1': {'ce', 'smoothed_ce'}, 'a width of 0': {'ce', 'smoothed_ce', 'relation', 'minilm_v2', 'global_structure', 'global_debiased'},
           'an offset of 5000': {*heads, 'gram', 'gram_free', 'u_center'}, 'int64': {'minilm'}, 'bool': {'minilm'}, # softmax of products magnifies what float32 rounds off
           'a scale of 1e-30': {'distance', 'feature_structure_distance'}, 'denormal numbers': {'distance', 'feature_structure_distance', 'gram_free'}}
    huge = case in ('a scale of 1e19', 'a scale of 1e30', 'the largest numbers', 'one entry of 1e30')
    none(wrong(n, [odd[case](a) for a in args_of(n)], huge=huge) for n in everything if n not in but.get(case, ()))

@pytest.mark.parametrize('context', [lambda: torch.autocast('cpu', torch.bfloat16), torch.no_grad, torch.inference_mode], ids=['autocast', 'no_grad', 'inference_mode'])
def test_is_the_same_to_the_last_bit_under(context):
    for n, (f, _) in everything.items():
        if n in ('minilm', 'fidelity'): continue # attention made outside; eigenvalues without vectors are another algorithm
        a, b = (result(f, args_of(n), c)[0] for c in (context, contextlib.nullcontext))
        assert torch.equal(a, b), n

def test_is_the_same_to_the_last_bit_with_deterministic_algorithms():
    before = {n: result(f, args_of(n)) for n, (f, _) in everything.items()}
    torch.use_deterministic_algorithms(True)
    try: after = {n: result(f, args_of(n)) for n, (f, _) in everything.items()}
    finally: torch.use_deterministic_algorithms(False)
    for n, (v, g) in before.items(): assert torch.equal(v, after[n][0]) and all(map(torch.equal, g, after[n][1])), n

@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_what_is_not_finite_never_gives_a_finite_number(bad):
    found = []
    for n, (f, shapes) in everything.items():
        for i in range(len(shapes)):
            args = args_of(n)
            args[i] = put(bad)(args[i])
            try: value = result(f, args)[0]
            except ValueError: continue
            if value.isfinite().all() and not (n in ('flat', 'patches') or n=='similarity_loss' and bad>0): found.append(f'{n}, argument {i}: {value}')
    none(found)

refused = {
    'a list': lambda x: x.tolist(), 'None': lambda x: None, 'an array': lambda x: x.numpy(), 'a word': lambda x: 'abc', 'complex numbers': lambda x: x+0j,
    'a sparse tensor': torch.Tensor.to_sparse}

@pytest.mark.parametrize('case', refused)
def test_is_refused_with_one_clear_error(case):
    found = []
    for n, (f, shapes) in everything.items():
        if n in ('ce', 'smoothed_ce', 'bce', 'feature_structure_cosine'): continue
        for i in range(len(shapes)):
            args = args_of(n)
            args[i] = refused[case](args[i])
            what = refusal(lambda: f(*args))
            if what: found.append(f'{n}, argument {i}: {what}')
    none(found)

mismatched = {'one example more': lambda x: torch.cat([x, x[:1]]), 'one dimension less': lambda x: x[0], 'one dimension more': lambda x: x[None],
              'another device': lambda x: x.to('meta')}

@pytest.mark.parametrize('case', mismatched)
def test_student_and_teacher_must_match(case):
    several = {n: f for n, (f, shapes) in everything.items() if len(shapes)>1 and not (n in ('distance', 'cosine') and case=='one example more')}
    found = []
    for n, f in several.items():
        for i in (0, 1):
            args = args_of(n)
            args[i] = mismatched[case](args[i])
            what = refusal(lambda: f(*args))
            if what and not (n.startswith('hsic') and case=='one dimension less' and 'accepted' in what): found.append(f'{n}, argument {i}: {what}')
    none(found)

masked = states | heads
good_masks = {'all tokens': torch.ones(N, L), 'no token': torch.zeros(N, L), 'one token': (torch.arange(L)==2).repeat(N, 1),
              'one example without a token': (torch.arange(N)!=2)[:,None].repeat(1, L), 'lengths': torch.arange(L)<torch.tensor([5, 4, 3, 2, 1, 5])[:,None]}

@pytest.mark.parametrize('case', good_masks)
def test_a_mask_may_be_bool_or_number_and_hides_whatever_is_there(case):
    found, mask = [], good_masks[case].bool()
    for n, f in masked.items():
        args = args_of(n)
        value, grads = result(f, args, mask=mask)
        right, want = result(f, [a.double() for a in args], mask=mask)
        if not agree(value, right, 1e-4, floor=1e-7) or not all(agree(g, w, 1e-3, floor=1e-5) for g, w in zip(grads, want)): found.append(f'{n}: {value}, not {right}')
        for kind in (torch.long, torch.float32, torch.uint8):
            if not torch.equal(value, f(*args, mask=mask.to(kind))): found.append(f'{n} with {kind}')
        if n in heads: continue
        for rubbish in (torch.nan, torch.inf, 3e38):
            dirty = [a.masked_fill(~mask[...,None], rubbish) for a in args]
            other, g = result(f, dirty, mask=mask)
            if not torch.equal(value, other) or any(o[~mask].any() or not o.isfinite().all() for o in g): found.append(f'{n} reads {rubbish}: {other}, not {value}')
    none(found)

bad_masks = {'too long': torch.ones(N, L+1), 'too many': torch.ones(N+1, L), 'flat': torch.ones(N), 'for attention': torch.ones(N, 1, L), 'an array': np.ones((N, L)),
             'a list': [[1]*L]*N, 'complex': torch.ones(N, L)+0j, 'negative': -torch.ones(N, L), 'a weight': torch.full((N, L), .5), 'nan': torch.full((N, L), torch.nan),
             'added to scores': torch.zeros(N, L).masked_fill(torch.arange(L)>2, -torch.inf), 'segments': 2*torch.ones(N, L, dtype=torch.long)}

@pytest.mark.parametrize('case', bad_masks)
def test_a_mask_is_refused_that_is(case):
    none((what := refusal(lambda: f(*args_of(n), mask=bad_masks[case]))) and f'{n}: {what}' for n, f in masked.items())

@pytest.mark.parametrize('name', ['intra', 'local', 'rkd', 'sp', 'pkt', 'global_structure', 'value_relation'])
def test_compiles_to_the_same_number(name):
    f, args = everything[name][0], args_of(name)
    mask = good_masks['lengths']
    assert torch.equal(torch.compile(f, backend='eager')(*args, mask=mask), f(*args, mask=mask))

@pytest.mark.parametrize('road', ['gram', 'streaming'])
@pytest.mark.parametrize('case', ['one example', 'equal examples', 'two equal examples', 'zeros', 'constant features', 'an offset of 5000', 'a scale of 1e-10',
                                  'a width of 1', 'float16', 'int64', 'transposed in memory', 'expanded'])
def test_clusters_of(case, road):
    x = randn(40, 6)
    make = odd | {'a scale of 1e-10': lambda x: x*1e-10, 'equal examples': lambda x: x[:1].repeat(40, 1), 'two equal examples': lambda x: x[[0, 0, *range(2, 40)]]}
    x = make[case](x)
    k = min(4, len(x))
    found = kmeans(x, k, road=road)
    x = x.double()
    means = torch.stack([x[found.assignment==c].mean(0) for c in range(k)])
    inertia = float((x-means[found.assignment]).square().sum())
    assert (found.counts>0).all() and found.counts.sum()==len(x)
    assert (found.centroids-means).abs().max() <= 1e-6*x.abs().max() + 1e-30
    assert abs(found.inertia-inertia) <= 1e-3*inertia + 1e-6*float(x.square().sum())

@pytest.mark.parametrize('make', [lambda x: put(float('nan'))(x), lambda x: put(float('inf'))(x), lambda x: x*1e30, lambda x: x*1e-30, lambda x: x.tolist(),
                                  lambda x: None, lambda x: x[0], lambda x: x[None], lambda x: x[:0], lambda x: x[:,:0], lambda x: x+0j],
                         ids=['nan', 'inf', '1e30', '1e-30', 'a list', 'None', 'one dimension', 'three dimensions', 'no example', 'no feature', 'complex'])
def test_clusters_refuse(make):
    x = make(randn(12, 6))
    none(refusal(lambda: f(x)) for f in (lambda x: kmeans(x, 2), lambda x: kmeans(x, 2, road='streaming'), lambda x: released_memory(x, 2))
         )

def test_assigns_to_the_nearest_centroid_or_says_what_is_wrong():
    x, c = randn(12, 6), randn(3, 6, seed=5)
    at, far = assign(x, c)
    d = torch.cdist(x.double(), c.double())
    assert torch.equal(at, d.argmin(1)) and far==pytest.approx(float(d.amin(1).square().sum()), rel=1e-5)
    assert assign(x[:0], c)[0].shape==(0,)
    none(refusal(lambda: assign(*o)) for o in ((x, c[:,:5]), (x, c[:0]), (x, c*torch.nan), (x*torch.nan, c), (x, c.tolist()), (x.tolist(), c), (x, c[0])))
