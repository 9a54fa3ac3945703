"Schedules: each minute of years by hand, both jumps of the clock, and one firing whoever looks, dies or comes late."
import os, random, signal, subprocess, sys, time
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo
import pytest
from mlstack.core import MlstackError, write_file
from mlstack.resources.records import finish, records
from mlstack.resources.schedules import fire, new_schedule, next_due, next_time, read_cron, schedule, scheduled


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv('MLSTACK_STATE', str(tmp_path/'state'))
    return tmp_path/'state'


def command(**kw): return dict(kind='command', name='nightly', command=['true'], on='local') | kw
def start(record): write_file(record/'handle.json', '{}')


def random_field(r, low, high):
    a, b = sorted((r.randint(low, high), r.randint(low, high)))
    return r.choice(['*', f'*/{r.randint(1, max(2, high//2))}', str(a), f'{a}-{b}', f'{a}-{b}/{r.randint(1, 5)}', f'{a},{b}'])


def walked(expr, after, zone, minutes):
    "The firings of the minutes that follow, one minute of real time after the other; nothing of ours but the fields."
    cron, fields, found, tz = read_cron(expr), expr.split(), [], ZoneInfo(zone)
    def fits(t):
        days = t.day in cron.days, t.isoweekday()%7 in cron.weekdays
        return t.minute in cron.minutes and t.hour in cron.hours and t.month in cron.months and (all(days) if '*' in (fields[2][0], fields[4][0]) else any(days))
    elapsed = '*' in (fields[0][0], fields[1][0])
    begin, before = int(after)//60*60+60, None
    seen = {}  # what the clock has shown in the last hours, when
    for at in range(begin-180*60, begin+minutes*60, 60):
        now = datetime.fromtimestamp(at, tz).replace(tzinfo=None)
        due = fits(now) and (elapsed or now not in seen)
        if before is not None and not elapsed and now-before > timedelta(minutes=1):  # put forward: what was left out comes now
            due |= any(fits(before+timedelta(minutes=o)) for o in range(1, int((now-before).total_seconds()/60)))
        seen[now], before = at, now
        if due and at > after: found.append(float(at))
    return found


@pytest.mark.parametrize('zone', ['UTC', 'Europe/Berlin', 'America/New_York', 'Australia/Lord_Howe'])
def test_against_a_walk_through_the_minutes(zone):
    "Also across both jumps of the clock, one of which is of half an hour."
    r, tried = random.Random(zone), 0
    jumps = [datetime(2026, 3, 28), datetime(2026, 10, 24), datetime(2026, 3, 7), datetime(2026, 10, 31), datetime(2026, 4, 4), datetime(2026, 10, 3), datetime(2028, 2, 28)]
    for day in jumps:
        for _ in range(9):
            expr = ' '.join((random_field(r, 0, 59), random_field(r, 0, 5), random_field(r, 1, 31) if r.random() < .3 else '*', '*', random_field(r, 0, 6) if r.random() < .3 else '*'))
            after = day.replace(tzinfo=timezone.utc).timestamp()+r.randint(0, 60*3600)
            expected = walked(expr, after, zone, 600)[:40]
            t, got = after, []
            for _ in expected: got.append(t := next_time(expr, t, zone))
            assert got == expected, expr
            tried += len(got)
    assert tried > 200


def test_the_clock_of_this_machine(monkeypatch):
    after = datetime(2026, 3, 28, 12, tzinfo=timezone.utc).timestamp()
    try:
        for zone in ('Europe/Berlin', 'America/New_York', 'UTC'):
            monkeypatch.setenv('TZ', zone)
            time.tzset()
            for expr in ('30 2 * * *', '*/20 * * * *', '@weekly'):
                assert next_time(expr, after) == next_time(expr, after, zone)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_each_firing_is_one_job_when_many_look(state):
    new_schedule('* * * * *', command(), note_txt=b'kept')
    due = next_due()
    code = 'import sys\nfrom mlstack.core import write_file\nfrom mlstack.resources.schedules import fire\nprint(len(fire(float(sys.argv[1]), start=lambda r: write_file(r/"handle.json", "{}"))))'
    for n in range(3):
        lookers = [subprocess.Popen([sys.executable, '-c', code, str(due+n*60)], stdout=subprocess.PIPE, text=True) for _ in range(4)]
        assert sum(int(o.communicate(timeout=300)[0]) for o in lookers) == 1
        [new] = [o for o in records() if not o.final]
        assert (new/'note.txt').read_bytes() == b'kept' and new.spec['scheduled'] == due+n*60 and new.spec['run'] == new.id
        finish(new, 'finished')
    assert len(records()) == 3


PHASES = ['claimed', 'half a folder', 'made', 'started']

@pytest.mark.parametrize('phase', PHASES)
def test_killed_in_every_phase(state, phase):
    "Whoever fires is killed; the next to look goes on, with one job, started once."
    new_schedule('* * * * *', command(), big_bin=b'x'*1000)
    code = '''
import os, signal, sys
from mlstack.core import write_file
from mlstack.resources import records, schedules as room
phase,due = sys.argv[1],float(sys.argv[2])
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
def started(record):
    if phase=='made': die()
    with open(record/'starts', 'a') as f: f.write('x')
    write_file(record/'handle.json', '{}')
    if phase=='started': die()
if phase=='claimed': room.new_record = die
if phase=='half a folder': records.Path.rename = die
room.fire(due, start=started)
'''
    due = next_due()
    assert subprocess.run([sys.executable, '-c', code, phase, str(due)], timeout=300).returncode == -signal.SIGKILL
    def begin(record):
        with open(record/'starts', 'a') as f: f.write('x')
        start(record)
    assert next_due() <= due+60
    [made] = fire(due+120, start=begin)
    assert made.spec['scheduled'] == due and (made/'starts').read_text() == 'x' and (made/'big.bin').read_bytes() == b'x'*1000
    assert [o.id for o in records()] == [made.id] and fire(due+120, start=begin) == []


def test_missed_comes_once_and_overlap_not_at_all():
    s = new_schedule('*/10 * * * *', command(), zone='UTC')
    due = next_due()
    assert len(fire(due+7*86400+1, start=start)) == 1  # the machine was off for a week
    assert s.next > due+7*86400+1
    assert fire(s.next, start=start) == []  # it still runs
    assert 'still ran (1 in all)' in repr(scheduled())
    finish(s.previous, 'failed', 'for a reason')
    assert len(fire(s.next, start=start)) == 1
    assert s.state['fired'] == 2


def test_one_that_cannot_start_is_tried_again_and_hinders_nobody():
    bad, good = new_schedule('* * * * *', command(name='bad')), new_schedule('* * * * *', command(name='good'))
    due = next_due()
    def picky(record):
        if record.spec['name'] == 'bad': raise OSError('the server is away')
        start(record)
    assert [o.spec['name'] for o in fire(due, start=picky)] == ['good']
    assert 'could not be started: the server is away' in repr(scheduled()) and bad.next == due+60
    assert fire(due+59, start=picky) == []
    [again] = [o for o in fire(due+60, start=start) if o.spec['name'] == 'bad']
    assert again.spec['scheduled'] == due and 'away' not in repr(scheduled()) and good.state['fired'] == 1
    assert len([o for o in records() if o.spec['name'] == 'bad']) == 1


def test_a_clock_that_is_set_back():
    s = new_schedule('0 * * * *', command(), zone='UTC')
    due = next_due()
    finish(fire(due, start=start)[0], 'finished')
    assert fire(due-1800, start=start) == fire(due, start=start) == []  # by a little: not twice
    s._set(last=due+365*86400)  # it was wrong before
    assert fire(due, start=start) == [] and s.next == due+3600


def test_pause_resume_delete_and_the_names(state):
    s = new_schedule('* * * * *', command(environment='here'))
    due = next_due()
    schedule(s.id[-5:]).pause()
    assert next_due() is None and fire(due, start=start) == [] and 'paused' in repr(scheduled())
    s._set(last=time.time()-86400)
    schedule('nightly').resume()
    assert s.next > time.time()  # what would have come meanwhile does not
    assert next_due('elsewhere') is None and fire(s.next, 'elsewhere', start=start) == [] and next_due('here')
    s.delete()
    assert not scheduled() and not os.listdir(state/'schedules') and fire(start=start) == []
    with pytest.raises(MlstackError, match='any more'): s.resume()


def test_a_damaged_one_is_shown_and_hinders_nobody(state):
    new_schedule('* * * * *', command(name='good'))
    bad = new_schedule('* * * * *', command(name='bad'))
    (bad.path/'state.json').write_text('{')
    assert 'damaged' in repr(scheduled()) and 'damaged' in scheduled()._repr_html_()
    assert [o.spec['name'] for o in fire(next_due(), start=start)] == ['good']


def test_only_the_owner_reads(state):
    s = new_schedule('* * * * *', command(params=dict(x='secret')), call_pkl=b'x', secrets_json=b'{}')
    assert {oct(o.stat().st_mode & 0o77) for o in [s.path/'spec.json', *(s.path/'files').iterdir(), s.path.parent]} == {'0o0'}


def test_names_are_escaped():
    new_schedule('* * * * *', command(name='<script>x</script>'))
    assert '<script>' not in scheduled()._repr_html_()
    for bad in ('* * * *', '0 0 31 2 *', '@reboot'):
        with pytest.raises(MlstackError): new_schedule(bad, command())
    assert len(scheduled()) == 1
