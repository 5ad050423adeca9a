"""Several processes on one outputs folder, and kept files that are not as they were."""
import shutil
import pytest
from fsd import distill
from fsd.kept import sha256
from fsd.runs import find, load

together = '''
import os, time, fsd.experiment
from pathlib import Path
there = Path(os.environ["FSD_OUTPUTS"]).parent
(there/f"ready-{{os.getpid()}}").touch()
while len(list(there.glob("ready-*"))) < {n}: time.sleep(0.01)
'''

def folders(outputs, kind): return [p for p in (outputs/kind).iterdir() if p.is_dir()]

def test_at_once_on_a_fresh_folder(outputs, start, tiny):
    outputs.parent.mkdir(exist_ok=True)
    methods = ['vkd', 'fsd_i', 'fsd_i']
    running = [start(outputs, 'wnli', m, tiny, together.format(n=len(methods))) for m in methods]
    said = [p.communicate()[0] for p in running]
    assert [p.returncode for p in running]==[0, 0, 0], '\n'.join(said)
    assert sum('teachers: making' in o for o in said)==1 and sum('teachers: found' in o for o in said)>=1
    assert sum('students: making' in o for o in said)==2 and sum('students: found' in o for o in said)==1, 'the same run twice makes one student'
    assert len(folders(outputs, 'teachers'))==1 and len(folders(outputs, 'students'))==2 and not folders(outputs, 'checkpoints')
    assert not list(outputs.rglob('*.tmp-*'))
    records = {r.method:r for r in find(kind='trials')}
    assert set(records)=={'vkd', 'fsd_i'} and records['vkd'].teacher==records['fsd_i'].teacher
    for r in records.values(): assert set(r.arrays()) and set(r.arrays('analysis'))

# ---------------------------------------------------------------- damage

def student_of(outputs):
    student, = folders(outputs, 'students')
    return sha256(student/'model.safetensors')

@pytest.fixture(scope='module')
def whole(tiny, tmp_path_factory):
    "An outputs folder with one finished run."
    folder = tmp_path_factory.mktemp('whole')/'outputs'
    with pytest.MonkeyPatch.context() as m:
        m.setenv('FSD_OUTPUTS', str(folder))
        distill('wnli', 'fsd', **tiny)
    return folder

def truncate(b): return b[:len(b)//2]
def flip(b): return b[:-9]+bytes([b[-9]^4])+b[-8:]

@pytest.mark.parametrize('damage, fault', [(truncate, 'truncated from'), (flip, 'altered')])
@pytest.mark.parametrize('kind, name', [('teachers', 'model.safetensors'), ('features', 'hidden-3.npy'), ('memories', 'centroids.npy'), ('students', 'model.safetensors')])
def test_damage_is_named_and_mended(whole, outputs, tiny, capsys, kind, name, damage, fault):
    shutil.copytree(whole, outputs)
    record, = outputs.rglob('run.json')
    before = load(record.parent).record
    record.unlink()
    if kind!='students': shutil.rmtree(outputs/'students')
    if kind=='features': shutil.rmtree(outputs/'memories')
    path, = outputs.glob(f'{kind}/*/{name}')
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    capsys.readouterr()
    after = distill('wnli', 'fsd', **tiny).record
    said = capsys.readouterr().out
    assert f'{path}: {fault}' in said and said.count('Making it again.')==1
    assert path.read_bytes()==sound and student_of(outputs)==student_of(whole)
    for part in ('scores', 'best', 'epochs', 'history', 'analysis', 'fingerprint'): assert after[part]==before[part]

def test_a_damaged_student_of_a_finished_run_is_made_again_when_it_is_looked_at(whole, outputs, tiny, capsys):
    from fsd import Experiment
    shutil.copytree(whole, outputs)
    path, = outputs.glob('students/*/model.safetensors')
    path.write_bytes(flip(path.read_bytes()))
    exp = Experiment('wnli', 'fsd', **tiny)
    exp.run()
    assert exp.student.num_parameters() and f'{path}: altered' in capsys.readouterr().out and student_of(outputs)==student_of(whole)
