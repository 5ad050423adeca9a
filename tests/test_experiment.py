"""What an experiment refuses before anything is computed, and where it computes."""
import pytest, torch
from conftest import build_for_cuda
from fsd.experiment import Experiment, distill

# ---------------------------------------------------------------- devices

def test_the_main_job_with_torch_built_for_cuda_and_no_gpu(outputs, tiny, monkeypatch):
    build_for_cuda(monkeypatch, gpu=False)
    teacher = Experiment('wnli', 'nods', **tiny)
    assert teacher.summary()['device'].startswith('cpu') and len(teacher.teacher_scores())==2
    run = distill('wnli', 'fsd', **tiny)
    assert run.record['environment']['device'].startswith('cpu') and run.record['probe']

def test_a_device_that_is_not_there_is_refused_first(outputs, tiny):
    with pytest.raises(ValueError, match="device='cuda' is not here: there is cpu"): Experiment('wnli', 'fsd', **tiny, device='cuda')
    with pytest.raises(ValueError, match="unknown device 'gpu'"): Experiment('wnli', 'fsd', **tiny, device='gpu')
    assert not outputs.exists()

def test_the_device_names_no_run(outputs, tiny):
    a,b = Experiment('wnli', 'fsd', **tiny),Experiment('wnli', 'fsd', **tiny, device='cpu')
    assert a.folder==b.folder and all(a.determined_by(k)==b.determined_by(k) for k in ('teachers', 'memories', 'students'))
