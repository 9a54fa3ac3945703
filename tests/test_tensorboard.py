"""TensorBoard's files, both ways: the real reader and the real server read ours, ours reads what torch and TensorBoard's own messages write, and damage is named."""
import json, math, os, random, re, struct, subprocess, sys, time, warnings
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest

import mlstack.tracking as track
from mlstack import core
from mlstack.core import MlstackError
from mlstack.tracking import tensorboard as tb, tensorboard_sync
from mlstack.tracking.columns import compact
from mlstack.tracking.recorder import nice_name


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_RUNS', str(tmp_path/'runs'))
    core.set_process_context(None)
    yield tmp_path/'runs'
    core.set_process_context(None)

def accumulator(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder), size_guidance=dict.fromkeys(('scalars', 'tensors', 'images', 'histograms', 'audio'), 0))
    return found.Reload()

def rounded(values):
    with np.errstate(over='ignore'): return np.float32(values).astype(float)

def same(a, b): return a.tobytes() == b.tobytes()

def quiet(fn, *args, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return fn(*args, **kw)


# -- checksums and frames ---------------------------------------------------------------------------------------------------------

def plainly(data):
    "CRC-32C bit by bit."
    c = 0xffffffff
    for byte in data:
        c ^= byte
        for _ in range(8): c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
    return c ^ 0xffffffff

@pytest.mark.parametrize('seed', range(6))
def test_checksums_of_any_lengths_at_once(seed):
    rng = random.Random(seed)
    found = [rng.randbytes(rng.choice([0, 1, 2, 3, 15, 16, 17, 31, rng.randrange(300), rng.randrange(5000)])) for _ in range(60)]
    assert tb.crc32c(found) == [plainly(o) for o in found]

def test_checksums_as_tensorboard_makes_them():
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c
    found = [os.urandom(n) for n in (0, 1, 7, 100, 4096, 99_999)]
    assert tb.crc32c(found) == [crc32c(o) for o in found]

def test_many_records_in_portions(tmp_path):
    "Files are read 4 MiB at a time; records lie across the borders, and some are longer than that."
    rng = random.Random(1)
    found = [rng.randbytes(n) for n in [3, 6 << 20, 0, 5 << 20, *(rng.randrange(2000) for _ in range(5000))]]
    (tmp_path/'f').write_bytes(tb.framed(found))
    problems = []
    assert list(tb.records(tmp_path/'f', problems)) == found and not problems


# -- ours, read by the real one ---------------------------------------------------------------------------------------------------

def a_run(**kw):
    rng = np.random.default_rng(0)
    x = rng.random((9, 7))
    with track.init(project='p', config=dict(lr=.1, model=dict(width=64, act='relu'), flag=True, none=None), surroundings=False, **kw) as run:
        for i in range(500): run.log({'train/loss': float(rng.normal()*10.**rng.integers(-45, 45)), 'n': i})
        for i, v in enumerate((math.nan, math.inf, -math.inf, -0., 1e300, 1e-46, 2**24+1)): run.log({'x': v}, step=i-3)
        run.log({'w': track.Histogram(rng.normal(size=1000)), 'empty bins': track.Histogram(np_histogram=([0, 0, 3, 0], [0, 1, 2, 3, 4.])), 'img': track.Image(x), 'two': [track.Image(x), track.Image(1-x)],
            'note': 'hello *é*', 'sound': track.Audio(np.sin(np.arange(800)/9), 8000), 'table': track.Table(columns=['a', 'b'], data=[[1, 'x|y'], [None, 'z\n']]), 'page': track.Html('<b>x</b>'), 'list': [1, 2]}, step=600)
        for step in (5, 3, 3): run.log({'back': step*1.}, step=step)
    return run

@pytest.fixture
def copied(tmp_path):
    run = a_run(name='a/b', tags=['one'], notes='n')
    place, = track.sync(run, to=f'tensorboard:{tmp_path}/logs')
    return run.record(), place

def test_the_real_reader_finds_every_point(copied):
    ours, place = copied
    theirs = accumulator(place)
    for k in ('train/loss', 'n', 'x'):
        step, at, v = ours.metric(k)
        found = sorted(theirs.Scalars(k), key=lambda o: o.step)
        assert [o.step for o in found] == step.tolist() and same(np.array([o.wall_time for o in found]), at) and same(np.array([o.value for o in found]), rounded(v)), k
    assert [(o.step, o.value) for o in theirs.Scalars('back')] == [(5, 5.), (3, 3.), (3, 3.)]  # as it was logged

def test_the_real_reader_finds_the_rest(copied):
    ours, place = copied
    theirs = accumulator(place)
    h, mine = theirs.Histograms('w')[0].histogram_value, ours.media('w')[0][1]
    assert (h.bucket, h.bucket_limit, h.num, h.min, h.max) == ([0, *mine.histogram], mine.bins, 1000, mine.bins[0], mine.bins[-1])
    h = theirs.Histograms('empty bins')[0].histogram_value
    assert (h.min, h.max, h.num, h.sum) == (2., 3., 3, 7.5)
    image, = theirs.Images('img')
    assert (image.width, image.height, image.step, image.encoded_image_string) == (7, 9, 600, ours.media('img')[0][1].data)
    sound, = theirs.Audio('sound')
    assert (sound.sample_rate, sound.length_frames, sound.encoded_audio_string) == (8000, 800, ours.media('sound')[0][1].data)
    from tensorboard.util.tensor_util import make_ndarray
    text = lambda k: [o.decode() for o in make_ndarray(theirs.Tensors(k)[0].tensor_proto)]
    assert text('note') == ['hello *é*'] and text('table') == ['| a | b |\n|---|---|\n| 1 | x\\|y |\n| None | z  |'] and text('list') == ['[1, 2]']
    assert 'page' not in str(theirs.Tags())

def test_what_cannot_be_shown_holds_nothing_up(tmp_path):
    "A picture whose file is gone, values that only look like media: left out and named, the rest is there."
    run = track.init(surroundings=False)
    run.log({'img': track.Image(np.zeros((2, 2))), 'x': 1.})
    run.log({'a': {'_type': 'image-file'}, 'b': {'_type': 'histogram', 'values': ['x'], 'bins': [1]}, 'c': {'_type': 'table-file', 'path': 'no'}, 'd': {'_type': 'audio-file', 'path': 'meta.json'}, 'e': {'_type': 'new'}, 'n': {'_type': 5}, 'y': 2.})
    run.log({'h': {'_type': 'histogram', 'values': [], 'bins': []}, 'f': {}, 'g': [], 's': '\ud800', 'z': 3.})
    run.finish()
    for o in (run.path/'media').iterdir(): o.unlink()
    theirs = accumulator(track.sync(run, to=f'tensorboard:{tmp_path}/logs')[0])
    assert [theirs.Scalars(k)[0].value for k in 'xyz'] == [1., 2., 3.] and not theirs.Tags()['images'] and 'g' in theirs.Tags()['tensors']

def test_hparams_in_its_own_messages(copied):
    from tensorboard.plugins.hparams import metadata
    theirs = accumulator(copied[1])
    told = metadata.parse_session_start_info_plugin_data(theirs.SummaryMetadata('_hparams_/session_start_info').plugin_data.content)
    assert {k: getattr(v, v.WhichOneof('kind')) for k, v in told.hparams.items()} == {'lr': .1, 'model.width': 64., 'model.act': 'relu', 'flag': True, 'none': 'null'}
    assert metadata.parse_session_end_info_plugin_data(theirs.SummaryMetadata('_hparams_/session_end_info').plugin_data.content).status == 1

def test_every_message_is_understood_by_protobuf(copied):
    from google.protobuf.unknown_fields import UnknownFieldSet
    from tensorboard.compat.proto.event_pb2 import Event
    files = sorted(copied[1].iterdir())
    assert [o.name.endswith('.facts') for o in files] == [True, False]
    for file in files:
        problems = []
        found = [Event.FromString(o) for o in tb.records(file, problems)]
        assert not problems and found[0].file_version == 'brain.Event:2'
        assert not any(len(UnknownFieldSet(o)) for e in found for o in (e, e.summary, *e.summary.value, *(v.tensor for v in e.summary.value), *(v.metadata for v in e.summary.value)))


# -- back again -------------------------------------------------------------------------------------------------------------------

def test_round_trip(copied, tmp_path):
    ours, place = copied
    back, = track.load(place.parent, dir=tmp_path/'again')
    for k in ('id', 'project', 'name', 'tags', 'notes', 'config', 'state', 'group', 'created'): assert getattr(back, k) == getattr(ours, k), k
    for k in ('train/loss', 'n', 'x', 'back'):
        a, b = ours.metric(k), back.metric(k)
        assert same(a[0], b[0]) and same(a[1], b[1]) and same(rounded(a[2]), b[2]), k
    for k in ('w', 'empty bins'): assert (back.media(k)[0][1].histogram, back.media(k)[0][1].bins) == (ours.media(k)[0][1].histogram, ours.media(k)[0][1].bins)
    assert back.media('img')[0][1].data == ours.media('img')[0][1].data and [o.data for o in back.media('two')[0][1]] == [o.data for o in ours.media('two')[0][1]]
    assert back.media('sound')[0][1].data == ours.media('sound')[0][1].data and back.metric('note')[2].tolist() == ['hello *é*'] and not back.problems

@pytest.mark.parametrize('state, error', [('finished', ''), ('failed', 'ValueError: no'), ('killed', ''), ('preempted', 'moved')])
def test_how_it_ended_comes_back(tmp_path, state, error):
    run = track.init(project='p', surroundings=False)
    run.log({'x': 10**400, 'y': -10**400, 'z': 2**70})
    run.summary['best'] = .1
    run.finish(state=state, error=error)
    back, = track.load(track.sync(run, to=f'tensorboard:{tmp_path}/logs')[0], dir=tmp_path/'again')
    assert (back.state, back.error, back.summary) == (state, error, {'x': math.inf, 'y': -math.inf, 'z': 2.**70, 'best': .1})

def test_a_second_trip_changes_no_bit(copied, tmp_path):
    once, = track.load(copied[1], dir=tmp_path/'once')
    twice, = track.load(track.sync(once, to=f'tensorboard:{tmp_path}/second')[0], dir=tmp_path/'twice')
    assert once.metric_names == twice.metric_names
    for k in ('train/loss', 'n', 'x', 'back'): assert all(map(same, once.metric(k), twice.metric(k))), k

def test_loading_where_the_run_is_takes_nothing(copied, folder):
    before = {o: o.stat().st_mtime_ns for o in folder.rglob('*')}
    assert [o.path for o in track.load(copied[1].parent)] == [copied[0].path] and {o: o.stat().st_mtime_ns for o in folder.rglob('*')} == before

def test_names_of_folders(tmp_path):
    runs = [a for name in (None, 'same', 'same', '../up', '.hidden', '') for a in [track.init(project='p', name=name, reinit='create_new', surroundings=False)]]
    for o in runs: o.finish()
    places = track.sync(runs, to=f'tensorboard:{tmp_path}/logs')
    assert len(set(places)) == 6 and all(o.parent == tmp_path/'logs' for o in places) and places[0].name == nice_name(runs[0].id)
    assert {o.id for o in track.load(tmp_path/'logs', dir=tmp_path/'again')} == {o.id for o in runs}


# -- what others wrote ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def torch_logs(tmp_path_factory):
    "Everything that torch's writer has for a user, with what was put in."
    from torch.utils.tensorboard import SummaryWriter
    import torch
    folder, rng = tmp_path_factory.mktemp('torch')/'logs', np.random.default_rng(1)
    values = np.float32(rng.normal(size=300)*10.**rng.integers(-40, 38, 300))
    with SummaryWriter(str(folder)) as w:
        for i, v in enumerate(values.tolist()): w.add_scalar('train/loss', v, i, walltime=1.7e9+i/7)
        for i, v in enumerate((math.nan, math.inf, -math.inf)): w.add_scalar('odd', v, -i)
        for step in (3, 1, 2): w.add_scalar('back', step, step)
        w.add_scalar('new', torch.tensor(.1), 0, new_style=True)
        w.add_scalar('double', .1, 0, new_style=True, double_precision=True)
        w.add_histogram('h', rng.normal(size=1000), 0)
        w.add_histogram('auto', rng.normal(size=50), 0, bins='auto')
        w.add_image('img', (rng.random((3, 8, 6))*255).astype('u1'), 0)
        w.add_text('text', 'one *two*', 0)
        w.add_audio('tone', torch.sin(torch.arange(800)/9)[None], 0, 8000)
        w.add_pr_curve('pr', rng.integers(0, 2, 50), rng.random(50), 0)
        w.add_hparams({'lr': .1, 'bs': 32, 'opt': 'adam', 'amp': True}, {'hp/acc': .5}, run_name='trial')
        w.add_scalars('both', {'a': 1., 'b': 2.}, 0)
    return folder, values

def test_torch_writes_and_we_read(torch_logs, tmp_path):
    folder, values = torch_logs
    with pytest.warns(UserWarning, match='pr_curves'): found = {o.name: o for o in track.load(folder, dir=tmp_path)}
    assert set(found) == {'logs', 'trial', 'both_a', 'both_b'} and {o.project for o in found.values()} == {'tensorboard'}
    r = found['logs']
    step, at, v = r.metric('train/loss')
    assert step.tolist() == list(range(300)) and at.tolist() == [1.7e9+i/7 for i in range(300)] and same(v, values.astype(float))
    assert str(r.metric('odd')[2].tolist()) == '[-inf, inf, nan]' and r.metric('odd')[0].tolist() == [-2, -1, 0]
    assert r.metric('back')[2].tolist() == [1, 2, 3] and r.metric('new')[2].tolist() == [float(np.float32(.1))] and r.metric('double')[2].tolist() == [.1]
    h = r.media('h')[0][1]
    assert sum(h.histogram) == 1000 and sum(r.media('auto')[0][1].histogram) == 50
    image = r.media('img')[0][1]
    assert image.open().size == (6, 8) and (image.width, image.height) == (6, 8)
    assert r.metric('text/text_summary')[2].tolist() == ['one *two*'] and r.media('tone')[0][1].sample_rate == 8000
    assert found['trial'].config == {'lr': .1, 'bs': 32, 'opt': 'adam', 'amp': True} and found['trial'].metric('hp/acc')[2].tolist() == [.5] and found['trial'].state == 'finished'
    assert found['both_b'].metric('both')[2].tolist() == [2.]

def test_the_same_points_as_the_real_reader(torch_logs, tmp_path):
    folder, _ = torch_logs
    theirs, ours = accumulator(folder), next(o for o in quiet(track.load, folder, dir=tmp_path) if o.name == 'logs')
    for k in theirs.Tags()['scalars']:
        points = sorted((o.step, o.wall_time) for o in theirs.Scalars(k))
        assert points == sorted(zip(ours.metric(k)[0].tolist(), ours.metric(k)[1].tolist())), k

def test_files_in_the_newer_form(tmp_path):
    "What TensorFlow 2 and Keras write: tensors with metadata, in every type, packed or not, repeated values left out."
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.plugins.histogram.metadata import create_summary_metadata as of_histograms
    from tensorboard.plugins.image.metadata import create_summary_metadata as of_images
    from tensorboard.plugins.scalar.metadata import create_summary_metadata as of_scalars
    from tensorboard.util.tensor_util import make_tensor_proto
    events = []
    def add(tag, tensor, metadata=None, step=0):
        e = Event(wall_time=1.7e9+len(events), step=step)
        e.summary.value.add(tag=tag, tensor=tensor, **(dict(metadata=metadata) if metadata else {}))
        events.append(e.SerializeToString())
    for kind in ('float32', 'float64', 'float16', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'bool'):
        add(f's/{kind}', make_tensor_proto(np.array(1, kind)), of_scalars('', ''))
    add('s/int64', make_tensor_proto(np.int64(-5)), step=1)  # metadata come with the first only
    t = make_tensor_proto(np.float32(0))
    t.ClearField('float_val')
    add('zero', t, of_scalars('', ''))
    add('raw', TensorProto(dtype=1, tensor_content=struct.pack('<f', 2.5)), of_scalars('', ''))
    add('h', make_tensor_proto(np.array([[0, 1, 5], [1, 3, 2]], 'f8')), of_histograms('', ''))
    add('none', make_tensor_proto(np.zeros((0, 3))), of_histograms('', ''))
    png = track.Image(np.zeros((2, 3))).data
    add('i', make_tensor_proto([b'3', b'2', png, png]), of_images('', ''))
    add('matrix', make_tensor_proto(np.eye(2)))
    folder = tmp_path/'logs'/'train'
    folder.mkdir(parents=True)
    (folder/'events.out.tfevents.1.h').write_bytes(tb.framed([Event(wall_time=1.7e9, file_version='brain.Event:2').SerializeToString(), *events]))
    with pytest.warns(UserWarning, match='tensors'): r, = track.load(tmp_path/'logs', dir=tmp_path/'again')
    assert all(r.metric(f's/{k}')[2][0] == 1 for k in ('float32', 'float64', 'float16', 'int8', 'uint64', 'bool')) and r.metric('s/int64')[2].tolist() == [1, -5]
    assert r.metric('zero')[2].tolist() == [0] and r.metric('raw')[2].tolist() == [2.5]
    assert r.media('h')[0][1].bins == [0, 1, 3] and r.media('h')[0][1].histogram == [5, 2] and len(r.media('i')[0][1]) == 2 and (r.name, r.state) == ('train', 'finished')

def test_a_live_folder_grows(tmp_path):
    "Loaded while it is written, again when there is more; a second file goes on with the run."
    from torch.utils.tensorboard import SummaryWriter
    w = SummaryWriter(str(tmp_path/'logs'))
    for i in range(50): w.add_scalar('x', i, i)
    w.flush()
    file, = (tmp_path/'logs').iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:-5])
    with pytest.warns(UserWarning, match='cut off'): first, = track.load(tmp_path/'logs')
    assert len(first.metric('x')[0]) == 49 and first.state == 'killed'
    file.write_bytes(data)
    assert compact(first.path) == 1
    w.close()
    time.sleep(1.1)  # its name has the second
    with SummaryWriter(str(tmp_path/'logs')) as w:
        for i in range(50, 80): w.add_scalar('x', i, i)
    again, = track.load(tmp_path/'logs')
    assert again.path == first.path and again.metric('x')[2].tolist() == list(range(80)) and again.state == 'finished' and len(track.runs()) == 1
    moved = (tmp_path/'logs').rename(tmp_path/'elsewhere')
    before = {o: o.stat().st_mtime_ns for o in again.path.rglob('*')}
    for place in (moved, tmp_path, sorted(moved.iterdir())[1]): assert [o.path for o in track.load(place)] == [again.path], place
    assert {o: o.stat().st_mtime_ns for o in again.path.rglob('*')} == before


# -- damage -----------------------------------------------------------------------------------------------------------------------

def points_in(file):
    problems, found = [], []
    for data in tb.records(file, problems):
        try: found.append(tb._event(data)[1:])
        except tb.NOT_UNDERSTOOD: pass
    return found, problems

def test_cut_anywhere(copied, tmp_path):
    file = next(o for o in copied[1].iterdir() if not o.name.endswith('.facts'))
    data, (whole, _) = file.read_bytes(), points_in(file)
    for n in [*random.Random(2).sample(range(len(data)), 60), 0, 1, 11, 12, len(data)-1]:
        (tmp_path/'cut').write_bytes(data[:n])
        found, problems = points_in(tmp_path/'cut')
        assert found == whole[:len(found)] and (len(problems) == 1 and 'cut off at byte' in problems[0] or not problems), n

def test_flipped_bits(copied, tmp_path):
    file = next(o for o in copied[1].iterdir() if not o.name.endswith('.facts'))
    data, (whole, _) = file.read_bytes(), points_in(file)
    for seed in range(60):
        at = random.Random(seed).randrange(len(data))
        (tmp_path/'flip').write_bytes(data[:at]+bytes([data[at] ^ 1 << seed % 8])+data[at+1:])
        found, problems = points_in(tmp_path/'flip')
        assert len(problems) == 1 and 'is damaged at byte' in problems[0] and all(o in whole for o in found), seed
        assert len(found) == len(whole)-1 or 'everything after it is lost' in problems[0]

def test_records_of_nonsense(tmp_path):
    "With right checksums and wrong content: named, left out, never an error."
    rng = random.Random(3)
    good = tb.event(1.7e9, 1, tb.scalars({'x': 1.}))
    contents = [rng.randbytes(rng.randrange(60)) for _ in range(300)]
    for _ in range(600):  # messages with a byte changed
        o = bytearray(rng.choice([good, tb.event(1.7e9, 2, tb.value('h', 5, tensorboard_sync.histogram([1, 2], [0, 1, 2.]))), tb.event(1.7e9, 3, tb.value('t', 8, tb.strings(['a']), 'text')), tb.event(1.7e9, 0, tensorboard_sync.started(dict(a=1, b='x'), 1.7e9))]))
        o[rng.randrange(len(o))] ^= 1 << rng.randrange(8)
        contents.append(bytes(o))
    (tmp_path/'events.out.tfevents.1').write_bytes(tb.framed([good, *contents, good]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        r, = track.load(tmp_path/'events.out.tfevents.1')
    assert any('not understood' in str(o.message) for o in told) and r.metric('x')[2][-1] == 1. and len(r.metric('x')[0]) >= 2

def test_bad_input(tmp_path):
    (tmp_path/'logs').mkdir()
    (tmp_path/'logs'/'events.out.tfevents.1').write_bytes(b'no event file at all, but long enough to be one')
    with pytest.warns(UserWarning, match='damaged at byte 0'): r, = track.load(tmp_path/'logs')
    assert r.metric_names == []
    (tmp_path/'empty').mkdir()
    (tmp_path/'empty'/'events.out.tfevents.1').touch()
    assert track.load(tmp_path/'empty')[0].metric_names == []
    with pytest.raises(MlstackError, match='nobody knows what this is'): track.load(tmp_path/'runs'/'none' if (tmp_path/'runs'/'none').mkdir(parents=True) else tmp_path/'runs'/'none')


# -- the real server --------------------------------------------------------------------------------------------------------------

class Server:
    def __init__(self, logdir, *options):
        self.p = subprocess.Popen([str(Path(sys.executable).with_name('tensorboard')), '--logdir', str(logdir), '--host', '127.0.0.1', '--port', '0', '--reload_interval', '1', *options],
            stderr=subprocess.PIPE, text=True, start_new_session=True, env={k: v for k, v in os.environ.items() if not k.lower().endswith('_proxy')})
        for line in self.p.stderr:
            if m := re.search(r'at (http://127.0.0.1:\d+/)', line): break
        else: raise AssertionError('the server did not start')
        self.url = m[1]

    def __call__(self, path, body=None, **query):
        r = Request(f'{self.url}data/{path}{"?"+urlencode(query) if query else ""}', json.dumps(body).encode() if body is not None else None, {'Content-Type': 'application/json'})
        data = urlopen(r, timeout=300).read()
        return json.loads(re.sub(rb'\b(NaN|-?Infinity)\b', lambda m: b'"%b"' % m[1], data))

    def until(self, test, *args, seconds=300, **kw):
        end = time.monotonic()+seconds
        while True:
            try:
                if test(got := self(*args, **kw)): return got
            except URLError: got = None
            assert time.monotonic() < end, f'never came true; last: {str(got)[:500]}'
            time.sleep(.2)

    def close(self):
        import signal
        os.killpg(self.p.pid, signal.SIGTERM)
        self.p.communicate()

@pytest.fixture(scope='module', params=['--load_fast=auto', '--load_fast=false'])
def served(request, tmp_path_factory):
    "Four finished runs and a live one, in the server with its fast reader and without."
    folder = tmp_path_factory.mktemp('served')
    core.set_process_context(None)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MLSTACK_RUNS', str(folder/'runs'))
        runs, rng = [], np.random.default_rng(0)
        for lr in (.3, .1, .03, .01):
            with track.init(project='digits', config=dict(lr=lr, model=dict(width=64 if lr > .05 else 128)), surroundings=False) as run:
                for i in range(200): run.log({'train/loss': 2.5*(1-lr/4)**(i/3), 'valid/acc': 1-.9*(1-lr/4)**(i/4)})
                run.log({'w': track.Histogram(rng.normal(size=1000)), 'img': track.Image(rng.random((8, 8))), 'both': [track.Image(rng.random((8, 8)))]*2, 'note': '**fine**', 'tone': track.Audio(np.zeros(80), 8000)}, step=0)
            runs.append(run)
        track.sync(runs, to=f'tensorboard:{folder}/logs')
        server = Server(folder/'logs', request.param)
        yield server, runs, folder
        server.close()
    core.set_process_context(None)

def test_the_server_has_our_runs(served):
    server, runs, _ = served
    names = {o.name for o in runs}
    server.until(lambda o: names <= set(o), 'runs')
    tags = server.until(lambda o: names <= set(o), 'plugin/scalars/tags')
    assert all(set(tags[o.name]) == {'train/loss', 'valid/acc'} for o in runs)
    for o in runs:
        step, at, v = o.record().metric('train/loss')
        points = server('plugin/scalars/scalars', run=o.name, tag='train/loss')
        assert [p[1] for p in points] == step.tolist() and np.allclose([p[0] for p in points], at, atol=1e-4) and np.float32([p[2] for p in points]).tolist() == np.float32(v).tolist()

def test_the_server_has_histograms_images_text_and_sound(served):
    server, runs, _ = served
    run = runs[0].name
    server.until(lambda o: run in o, 'plugin/histograms/tags')
    (_, step, buckets), = server('plugin/histograms/histograms', run=run, tag='w')
    assert sum(o[2] for o in buckets) == 1000 and buckets[0][0] < -2 < 2 < buckets[-1][1]
    for tag, n in (('img', 1), ('both', 2)):
        for sample in range(n):
            told = server('plugin/images/images', run=run, tag=tag, sample=sample)[0]
            data = urlopen(f'{server.url}data/plugin/images/individualImage?{told["query"]}', timeout=300).read()
            assert data[:4] == b'\x89PNG' and struct.unpack('>II', data[16:24]) == (8, 8)
    assert '<strong>fine</strong>' in server('plugin/text/text', run=run, tag='note')[0]['text']
    told = server('plugin/audio/audio', run=run, tag='tone', sample=0)[0]
    assert urlopen(f'{server.url}data/plugin/audio/individualAudio?{told["query"]}', timeout=300).read()[:4] == b'RIFF'

def test_the_hparams_tab(served):
    server, runs, _ = served
    names = {o.name for o in runs}
    ask = dict(allowedStatuses=['STATUS_SUCCESS', 'STATUS_FAILURE', 'STATUS_RUNNING', 'STATUS_UNKNOWN'], sliceSize=20, startIndex=0)
    found = server.until(lambda o: names <= {g['name'] for g in o['sessionGroups']}, 'plugin/hparams/session_groups', ask)
    told = {o['name']: o for o in found['sessionGroups']}
    infos = {o['name']: o for o in server('plugin/hparams/experiment', {})['hparamInfos']}
    assert infos['lr']['type'] == 'DATA_TYPE_FLOAT64' and 'model.width' in infos
    for o in runs:
        g = told[o.name]
        assert g['hparams']['lr'] == o.config.lr and g['sessions'][0]['status'] == 'STATUS_SUCCESS'
        metrics = {m['name']['tag']: m['value'] for m in g['metricValues']}
        assert np.float32(metrics['valid/acc']) == np.float32(o.summary['valid/acc'])

def test_a_run_is_seen_while_it_runs(served, folder):
    "The server is up; rows appear in it while the run goes on, and so does its end."
    server, _, logs = served
    run = track.init(project='digits', name='alive', config=dict(lr=1.), sinks=[f'tensorboard:{logs}/logs'], surroundings=False)
    name = f'alive-{run.id[-5:]}'
    for i in range(100): run.log(loss=i/3)
    server.until(lambda o: len(o) == 100, 'plugin/scalars/scalars', run=name, tag='loss')
    for i in range(100, 150): run.log(loss=i/3)
    points = server.until(lambda o: len(o) == 150, 'plugin/scalars/scalars', run=name, tag='loss')
    assert [p[1] for p in points] == list(range(150))
    run.finish()
    run.copying.join()
    ask = dict(allowedStatuses=['STATUS_SUCCESS'], sliceSize=20, startIndex=0)
    server.until(lambda o: name in {g['name'] for g in o['sessionGroups']}, 'plugin/hparams/session_groups', ask)

def test_the_page_of_tensorboard_shows_us(served, chromium):
    "The real page, in a real browser: our runs in its list, our curves drawn."
    server, runs, _ = served
    browser = chromium(1300, 900)
    browser.get(server.url+'?tagFilter=loss#timeseries')
    last = [run.summary['train/loss'] for run in runs]
    text, end = '', time.monotonic()+300
    def shown(): return all(any(abs(float(o)-v) < 1e-3*v+1e-4 for o in re.findall(r'\d+\.\d+', text)) for v in last)  # the values at the last step, below the curves
    while not (all(o.name in text for o in runs) and '/loss' in text and shown()):
        assert time.monotonic() < end, text[:2000]
        time.sleep(.5)
        text = browser.execute_script('return document.body.innerText')
    assert not [o for o in browser.get_log('browser') if o['level'] == 'SEVERE' and 'data/' in o['message']]
