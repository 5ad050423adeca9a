"Kept folders under kills, races, damage and full disks."
import os, signal, subprocess, sys
from pathlib import Path
import pytest
from fsd.kept import Damaged, kept, need_space, newest_valid, outputs, read_json, seal, verify, write_json

root = Path(__file__).resolve().parents[1]

def python(code, *args, **kw):
    "Start `code` in a process of its own."
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, 'PYTHONPATH': str(root)}, **kw)

def build(folder):
    (folder/'deep').mkdir()
    (folder/'a.bin').write_bytes(bytes(range(256))*64)
    (folder/'deep'/'b.bin').write_bytes(b'b'*1000)

def never(folder): raise AssertionError('built again')

def names(folder): return {p.name for p in folder.iterdir() if p.suffix != '.lock'}

def content(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

half_built = '''
import os, signal, sys, time
from pathlib import Path
from fsd.kept import kept
def build(folder):
    (folder/'a.bin').write_bytes(bytes(10))
    print('half', flush=True)
    {end}
kept(Path(sys.argv[1]), build, k=1)
'''

@pytest.mark.parametrize('end', ['os._exit(1)', 'os.kill(os.getpid(), signal.SIGKILL)', 'time.sleep(600)'])
def test_killed_build_leaves_nothing_to_use(tmp_path, end):
    p = python(half_built.format(end=end), tmp_path/'x')
    assert p.stdout.readline() == 'half\n'
    if 'sleep' in end: p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (tmp_path/'x').exists() and names(tmp_path), 'the orphan is there, the folder is not'
    kept(tmp_path/'x', build, k=1)
    assert names(tmp_path) == {'x'} and verify(tmp_path/'x') == {'k': 1}

sealed_by_hand = '''
import os, sys
from pathlib import Path
import fsd.kept as k
step = k.{step}
def die(*args, **kwargs): os._exit(1)
k.{step} = die
def build(folder): (folder/'a.bin').write_bytes(bytes(10))
k.kept(Path(sys.argv[1]), build)
'''

@pytest.mark.parametrize('step', ['seal', 'write_json', 'os.replace', '_fsync'])
def test_killed_while_sealing(tmp_path, step):
    assert python(sealed_by_hand.format(step=step), tmp_path/'x').wait() == 1
    assert not (tmp_path/'x').exists()
    kept(tmp_path/'x', build)
    assert names(tmp_path) == {'x'}

one_of_two = '''
import sys
from pathlib import Path
from fsd.kept import kept
def build(folder):
    with open(sys.argv[2], 'a') as f: f.write('built ')
    print('building', flush=True)
    sys.stdin.readline()
    (folder/'a.bin').write_bytes(bytes(10))
kept(Path(sys.argv[1]), build)
print('done', flush=True)
'''

def test_two_processes_build_once_and_the_second_says_it_waits(tmp_path):
    args = one_of_two, tmp_path/'x', tmp_path/'log'
    first = python(*args, stdin=subprocess.PIPE)
    assert first.stdout.readline() == 'building\n'
    second = python(*args, stdin=subprocess.PIPE)
    assert 'waiting' in second.stdout.readline()
    first.communicate('go\n')
    assert second.communicate()[0] == 'done\n'
    assert (tmp_path/'log').read_text() == 'built ' and verify(tmp_path/'x') == {}

def test_the_one_who_waits_takes_over_from_a_killed_builder(tmp_path):
    args = one_of_two, tmp_path/'x', tmp_path/'log'
    first = python(*args, stdin=subprocess.PIPE)
    assert first.stdout.readline() == 'building\n'
    second = python(*args, stdin=subprocess.PIPE)
    assert 'waiting' in second.stdout.readline()
    first.kill(); first.wait()
    assert second.communicate('go\n')[0] == 'building\ndone\n'
    assert names(tmp_path) == {'x', 'log'}

def truncate(p): p.write_bytes(p.read_bytes()[:100])
def flip(p): p.write_bytes(bytes([p.read_bytes()[0]^1])+p.read_bytes()[1:])
def grow(p): p.write_bytes(p.read_bytes()+b'\0')
def empty(p): p.write_bytes(b'')
def lose(p): p.unlink()
def folder_instead(p): p.unlink(); p.mkdir()

@pytest.mark.parametrize('name', ['a.bin', 'deep/b.bin', 'manifest.json'])
@pytest.mark.parametrize('damage', [truncate, flip, grow, empty, lose, folder_instead])
def test_damage_is_named_and_repaired(tmp_path, capsys, name, damage):
    x = kept(tmp_path/'x', build, k=1)
    whole = content(x)
    damage(x/name)
    with pytest.raises(Damaged, match=name): verify(x)
    kept(x, build, k=1)
    assert name in capsys.readouterr().out and content(x) == whole and names(tmp_path) == {'x'}
    kept(x, never, k=1)

def test_a_changed_word_about_it_is_damage(tmp_path):
    x = kept(tmp_path/'x', build, k=1)
    (x/'manifest.json').write_text((x/'manifest.json').read_text().replace('"k": 1', '"k": 2'))
    with pytest.raises(Damaged, match='manifest.json: altered'): verify(x)

def test_made_from_something_else_is_made_again(tmp_path, capsys):
    kept(tmp_path/'x', build, lr=1e-4, layers=(1, 2))
    kept(tmp_path/'x', never, layers=[1, 2], lr=1e-4)
    kept(tmp_path/'x', build, lr=1e-5)
    assert 'was made from' in capsys.readouterr().out and verify(tmp_path/'x') == {'lr': 1e-5}

@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path, error):
    def fails(folder): build(folder); raise error('stop')
    with pytest.raises(error): kept(tmp_path/'x', fails)
    assert not names(tmp_path)

def test_a_failed_repair_keeps_no_damaged_folder_in_use(tmp_path):
    x = kept(tmp_path/'x', build)
    flip(x/'a.bin')
    def fails(folder): raise ValueError('stop')
    with pytest.raises(ValueError, match='stop'): kept(x, fails)
    with pytest.raises(Damaged): verify(x)
    assert names(tmp_path) == {'x'}

def test_reading_needs_no_right_to_write(tmp_path, monkeypatch):
    x = kept(tmp_path/'x', build)
    monkeypatch.setattr('fsd.kept._alone', never)
    assert kept(x, never) == x

def test_names_with_brackets_and_neighbours_with_longer_names(tmp_path):
    kept(tmp_path/'x[1]', build); kept(tmp_path/'x[1]2', build)
    (tmp_path/'x[1].tmp-old').mkdir()
    lose(tmp_path/'x[1]'/'a.bin')
    kept(tmp_path/'x[1]', build)
    assert names(tmp_path) == {'x[1]', 'x[1]2'}

@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    try: subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError): pytest.skip('no right to mount a small disk')
    yield disk
    subprocess.run(['umount', disk], check=True)

def test_full_disk(small_disk):
    kept(small_disk/'old', build)
    write_json(small_disk/'run.json', {'k': 1})
    def too_big(folder): (folder/'big.bin').write_bytes(bytes(1<<20))
    with pytest.raises(OSError): kept(small_disk/'new', too_big)
    assert names(small_disk) == {'old', 'run.json'}
    with pytest.raises(OSError): write_json(small_disk/'run.json', 'x'*(1<<20))
    assert names(small_disk) == {'old', 'run.json'} and read_json(small_disk/'run.json') == {'k': 1}
    verify(small_disk/'old')
    with pytest.raises(OSError, match='make room'): need_space(small_disk/'new', 1<<20)

def test_newest_valid_names_what_it_skips(tmp_path, capsys):
    for n in (2, 10, 30, 40):
        (tmp_path/f'checkpoint-{n}').mkdir()
        build(tmp_path/f'checkpoint-{n}')
        if n != 40: seal(tmp_path/f'checkpoint-{n}')
    flip(tmp_path/'checkpoint-30'/'a.bin')
    assert newest_valid(tmp_path).name == 'checkpoint-10'
    said = capsys.readouterr().out
    assert 'checkpoint-40: manifest.json: missing' in said and 'checkpoint-30: a.bin: altered' in said

def test_read_json_names_file_and_line(tmp_path):
    for bad, line in [(b'', 1), (b'{"a": 1,\n "b": ', 2), (b'{\n\n"a": "\xff"}', 3)]:
        (tmp_path/'run.json').write_bytes(bad)
        with pytest.raises(ValueError, match=f'run.json, line {line}'): read_json(tmp_path/'run.json')

def test_outputs_outside_a_project_is_that_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv('FSD_OUTPUTS', raising=False)
    monkeypatch.chdir(tmp_path)
    assert outputs() == root/'outputs'
    monkeypatch.setattr('fsd.__file__', str(tmp_path/'site-packages'/'fsd'/'__init__.py'))
    assert outputs() == tmp_path/'outputs'

def test_a_file_in_place_of_a_kept_folder_is_refused_and_stays(tmp_path):
    (tmp_path/'x').write_text('mine')
    with pytest.raises(NotADirectoryError, match='x is a file'): kept(tmp_path/'x', never)
    assert names(tmp_path) == {'x'} and (tmp_path/'x').read_text() == 'mine'

@pytest.mark.parametrize('there', ['whole', 'damaged', 'absent'])
def test_a_link_is_followed_and_stays_a_link(tmp_path, there):
    (tmp_path/'disk').mkdir()
    x, link = tmp_path/'disk'/'x', tmp_path/'link'
    if there != 'absent': kept(x, build)
    if there == 'damaged': flip(x/'a.bin')
    link.symlink_to(x)
    assert kept(link, never if there == 'whole' else build) == link
    assert link.is_symlink() and verify(x) == {} and names(tmp_path) == {'disk', 'link'} and names(tmp_path/'disk') == {'x'}

def test_leftovers_that_are_files_or_links_are_tidied_too(tmp_path):
    (tmp_path/'x.tmp-1').write_text('')
    (tmp_path/'x.tmp-2').symlink_to(tmp_path)
    kept(tmp_path/'x', build)
    assert names(tmp_path) == {'x'}

def test_names_that_are_no_unicode_survive_the_seal(tmp_path):
    def odd(folder): (folder/os.fsdecode(b'caf\xe9')).write_bytes(b'1'); (folder/'caf\u00e9 \u2028').write_bytes(b'2')
    x = kept(tmp_path/'\u00e9 \U0001f600', odd, where=os.fsdecode(b'/a\xff'))
    assert verify(x) == {'where': os.fsdecode(b'/a\xff')}

def test_only_a_folder_can_be_sealed(tmp_path):
    with pytest.raises(NotADirectoryError, match='nowhere is no folder'): seal(tmp_path/'nowhere')
    assert not names(tmp_path)

def test_nan_is_not_room_and_not_json(tmp_path):
    with pytest.raises(OSError, match='needs nan GB'): need_space(tmp_path, float('nan'))
    (tmp_path/'run.json').write_text('{"loss": -Infinity}')
    with pytest.raises(ValueError, match='run.json: -Infinity is no number'): read_json(tmp_path/'run.json')

def test_outputs_must_be_able_to_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file').touch()
    for where in ('file', str(tmp_path/'file'/'below')):
        monkeypatch.setenv('FSD_OUTPUTS', where)
        with pytest.raises(NotADirectoryError, match='file is a file'): outputs()
    monkeypatch.setenv('FSD_OUTPUTS', '~nobody-of-this-name/x')
    with pytest.raises(NotADirectoryError, match='no such home'): outputs()
    for where in ('', ' '):
        monkeypatch.setenv('FSD_OUTPUTS', where)
        assert outputs() == root/'outputs'
    monkeypatch.setenv('FSD_OUTPUTS', '~')
    assert outputs() == Path.home()

def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuses(*args, **kw): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('fsd.kept.FileLock.acquire', refuses)
    with pytest.raises(PermissionError, match='x has to be made, but .* cannot be written to'): kept(tmp_path/'x', never)
    monkeypatch.setattr('fsd.kept.Path.mkdir', refuses)
    with pytest.raises(PermissionError, match='y/x has to be made, but .*y cannot be written to'): kept(tmp_path/'y'/'x', never)

@pytest.mark.parametrize('content,says', [(b'', 'line 1: Expecting value'), (b'{\n "a": [1,\n', 'line 3: Expecting value'),
    (b'{\n "a": "\xff"}', 'line 2: not UTF-8'), (b'{"a": NaN}', 'NaN is no number'), (b'{"a": -Infinity}', '-Infinity is no number')])
def test_what_is_no_json_is_said_with_its_place(tmp_path, content, says):
    (tmp_path/'a.json').write_bytes(content)
    with pytest.raises(ValueError) as e: read_json(tmp_path/'a.json')
    assert str(e.value).startswith(f'{tmp_path/"a.json"}') and says in str(e.value) and e.value.__context__ is None
