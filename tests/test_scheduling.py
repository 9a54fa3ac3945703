"What the scheduler owes everybody, for jobs and machines made up at random; and the simulator that runs it."
import random, subprocess, sys
from math import inf
import pytest
from tests import house
from mlstack.resources.leases import Machine, Want, place
from mlstack.resources.deciding import decide
from mlstack.resources.scheduling import Ask, Node, Policy, Quota, Scheduler, charge, used

GB = 1 << 30


# A made-up house

def machines(rng):
    "One machine by UUID, or a few by counts."
    if rng.random() < .5: return [Node('here', {f'GPU-{o}': 80*GB for o in range(rng.choice([1, 2, 4, 8]))}, 'h100', rng.choice([8, 32]), 64*GB)]
    return [Node(f'n{o}', rng.choice([2, 4, 8]), rng.choice(['a100', 'h100']), rng.choice([16, 32]), rng.choice([32, 64])*GB) for o in range(rng.choice([2, 5, 12]))]

def jobs(rng, nodes, n=40, endless=.0, **kw):
    "Jobs of which each would fit if it were alone."
    found, s = [], Scheduler(nodes)
    while len(found) < n:
        share = rng.choice([0, 0, 0, .25, .5, 1.])
        want = Want(rng.choice([0, 1, 1, 1, 2, 4, 8]), share if share < 1 else 0, rng.choice([0, 1, 2, 8]), rng.choice([0, 1, 16])*GB)
        if not any(want): continue
        a = Ask(f'j{len(found):03}', rng.choice('abc'), want, rng.choice([None, None, 'h100']), rng.choice([1, 1, 1, 2, 3]), time=None if rng.random() < endless else rng.choice([1., 5., 20., 100.])*(1+rng.random()),
            priority=rng.choice([0, 0, 0, 1, 5]), submitted=rng.random()*100, requeue=rng.random() < .5, not_before=rng.choice([0., 0., 0., rng.random()*200]))
        a = a._replace(**{k: v(rng) for k, v in kw.items()})
        if s.kind(a).ever: found.append(a)
    return found

class Play:
    "Lets time pass as the runner would, and looks at everything after each decision."
    def __init__(self, nodes, asks, policy=Policy(), rng=None, early=True, pure=False, until=1e7):
        self.nodes, self.policy, self.rng, self.pure = nodes, policy, rng or random.Random(0), pure
        self.to_come = sorted(asks, key=lambda a: (a.submitted, a.id), reverse=True)
        self.left = {a.id: (a.time if a.time is not None else 50.)*(self.rng.random() if early else 1) for a in asks}
        self.waiting, self.running, self.started, self.usage, self.holds, self.preempted = {}, {}, {}, {}, [], 0
        self.now, self.s = 0., Scheduler(nodes, policy)
        while (self.to_come or self.waiting or self.running) and self.now < until: self.step()

    def end(self, id):
        a = self.running.pop(id)
        self.s.end(id, self.now)
        charge(self.usage, a.user, used(self.s.kind(a).weight, self.now - a.started, self.policy.half_life), self.now, self.policy.half_life)
        return a

    def step(self):
        ends = {id: a.started + self.left[id] for id, a in self.running.items()}
        times = [*ends.values(), *[a.not_before for a in self.waiting.values() if a.not_before > self.now], *[a.submitted for a in self.to_come[-1:]]]
        assert times, f'nobody will ever start {list(self.waiting)}'
        self.now = max(self.now, min(times))
        for id, t in ends.items():
            if t <= self.now: self.end(id)
        while self.to_come and self.to_come[-1].submitted <= self.now:
            a = self.to_come.pop()
            self.waiting[a.id] = a
            self.s.add(a)
        args = self.now, self.nodes, list(self.waiting.values()), list(self.running.values()), self.policy, dict(self.usage), self.s.kept
        d = self.s.decide(self.now)
        self.last = d
        if self.pure and len(self.nodes) == 1:  # which of several equal nodes is taken is nobody's business
            e = decide(*args)
            assert {a.id: p for a, p in d.start} == {a.id: p for a, p in e.start} and {o.id for o, _ in d.preempt} == {o.id for o, _ in e.preempt}
            assert dict(d.why) == dict(e.why) and set(d.why) == set(self.waiting) - {a.id for a, _ in d.start}
        for a, p in d.start:
            assert a.not_before <= self.now and not a.after_open
            self.running[a.id] = self.waiting.pop(a.id)._replace(started=self.now, place=p)
            self.started.setdefault(a.id, self.now)
        for o, a in d.preempt:
            assert o.requeue and o.priority < a.priority
            self.preempted += 1
            o = self.end(o.id)._replace(started=None, place=None, submitted=o.submitted)
            self.waiting[o.id] = o
            self.s.add(o)
        self.holds.append((self.now, d.hold))
        self.look()
        if d.preempt: self.step_again()

    def step_again(self):
        "Who asked for the room must get it at once."
        wanted = {a.id for _, a in self.last.preempt}
        d = self.s.decide(self.now)
        for a, p in d.start:
            self.running[a.id] = self.waiting.pop(a.id)._replace(started=self.now, place=p)
            self.started.setdefault(a.id, self.now)
        assert {a.id for a, _ in d.start} & wanted
        self.look()

    def look(self):
        for n in self.nodes:
            parts = [(a, p) for a in self.running.values() for p in a.place if p['node'] == n.name]
            assert sum(p['cores'] for _, p in parts) <= n.cores and sum(p['memory'] for _, p in parts) <= n.memory
            sizes = n.gpus if isinstance(n.gpus, dict) else dict.fromkeys(range(n.gpus), 1 << 20)
            for u, size in sizes.items():
                on = [(a, p['gpus'][u]) for a, p in parts if u in p['gpus']]
                assert sum(b for _, b in on) <= size and (len(on) < 2 or all(a.want.gpu_mem for a, _ in on))
        for a in self.running.values():
            assert len({p['node'] for p in a.place}) == a.nodes == len(a.place)
            for p in a.place: assert len(p['gpus']) == a.want.gpus and p['cores'] == a.want.cpus and p['memory'] == a.want.mem
        for user in {a.user for a in self.running.values()}:
            mine, q = [a for a in self.running.values() if a.user == user], self.policy.quotas.get(user, self.policy.quota)
            assert len(mine) <= q.running and sum(self.s.kind(a).devices for a in mine) <= q.gpus + 1e-9 and sum(a.want.cpus*a.nodes for a in mine) <= q.cpus
        for g in {a.group for a in self.running.values() if a.group}:
            on = [a for a in self.running.values() if a.group == g]
            assert len(on) <= (on[0].at_once or inf)


# Promises

@pytest.mark.parametrize('seed', range(60))
def test_everybody_starts_and_nothing_is_given_twice(seed):
    rng = random.Random(seed)
    nodes = machines(rng)
    asks = jobs(rng, nodes)
    p = Play(nodes, asks, Policy(preempt=rng.random() < .5, fair=rng.random() < .7, backfill=rng.random() < .8), rng, pure=seed % 3 == 0)
    assert set(p.started) == {a.id for a in asks}

@pytest.mark.parametrize('seed', range(20))
def test_quotas_and_arrays(seed):
    rng = random.Random(100 + seed)
    nodes = machines(rng)
    policy = Policy(quotas=dict(a=Quota(gpus=16, running=2)), quota=Quota(cpus=30, running=5))
    asks = jobs(rng, nodes, group=lambda r: r.choice([None, 'g', 'h']), at_once=lambda r: 2)
    asks = [a._replace(at_once=0 if a.group is None else 2 if a.group == 'g' else 3) for a in asks]
    asks = [a for a in asks if a.nodes*a.want.cpus <= (30 if a.user != 'a' else inf) and (a.user != 'a' or a.nodes*a.want.gpus <= 16)]
    p = Play(nodes, asks, policy, rng, pure=seed % 3 == 0)
    assert set(p.started) == {a.id for a in asks}

@pytest.mark.parametrize('seed', range(40))
def test_nobody_delays_the_one_with_the_reservation(seed):
    "First come, first served, so that the first stays the first: its time never moves back, and it starts by then."
    rng = random.Random(200 + seed)
    nodes = machines(rng)
    asks = jobs(rng, nodes, endless=.1 if seed % 2 else 0, priority=lambda r: 0, not_before=lambda r: 0., submitted=lambda r: r.random()*10)
    p = Play(nodes, asks, Policy(fair=False, preempt=False), rng)
    first, kept = {}, 0
    for _, hold in p.holds:
        if not hold: continue
        id, time = hold[0].id, hold[1]
        assert time <= first.get(id, inf) + 1e-6
        first[id] = min(time, first.get(id, inf))
        kept += 1
    assert kept
    for id, time in first.items(): assert p.started[id] <= time + 1e-6

@pytest.mark.parametrize('seed', range(20))
def test_whose_turn_it_is_does_not_take_a_reservation_away(seed):
    "Fair share changes the order all the time; among equals the one with the place keeps it, and his time never moves back."
    rng = random.Random(300 + seed)
    nodes = machines(rng)
    asks = jobs(rng, nodes, 60, priority=lambda r: 0, not_before=lambda r: 0., submitted=lambda r: r.random()*50)
    p = Play(nodes, asks, Policy(preempt=False), rng)
    for (_, was), (now, hold) in zip(p.holds, p.holds[1:]):
        if was and p.started[was[0].id] > now: assert hold[0].id == was[0].id and hold[1] <= was[1] + 1e-6

def test_a_job_without_a_limit_is_not_filled_in_before_the_reservation():
    nodes = [Node('here', 4, '', 64, 64*GB)]
    run = Ask('x', 'a', Want(2, 0, 1, 0), time=100, started=0., place=[dict(node='here', gpus={0: 1 << 20, 1: 1 << 20}, cores=1, memory=0)])
    big, short, endless = Ask('big', 'a', Want(4, 0, 1, 0), time=100, submitted=1.), Ask('short', 'a', Want(1, 0, 1, 0), time=100, submitted=2.), Ask('endless', 'a', Want(1, 0, 1, 0), submitted=3.)
    d = decide(0, nodes, [big, short, endless, short._replace(id='long', time=101, submitted=4.)], [run])
    assert [a.id for a, _ in d.start] == ['short'] and d.hold[1] == 100
    assert d.why['endless'] == 'job big would start later for it: it has no time limit' and d.why['long'] == 'job big would start later for it'
    none = decide(0, nodes, [big, short], [run._replace(time=None)])
    assert not decide(0, nodes, [big, endless], [run._replace(time=None)]).start  # when x ends, big is next
    assert [a.id for a, _ in none.start] == ['short'] and none.why['big'] == '1 of 4 GPUs are free; starts when job x ends, which has no time limit'

def test_a_long_one_is_filled_in_where_it_is_not_in_the_way():
    nodes = [Node('here', 4, '', 64, 64*GB)]
    run = Ask('x', 'a', Want(2, 0, 1, 0), time=100, started=0., place=[dict(node='here', gpus={0: 1 << 20, 1: 1 << 20}, cores=1, memory=0)])
    three, endless = Ask('three', 'a', Want(3, 0, 1, 0), time=100, submitted=1.), Ask('endless', 'a', Want(1, 0, 1, 0), submitted=2.)
    d = decide(0, nodes, [three, endless, endless._replace(id='other', submitted=3.)], [run])
    assert [a.id for a, _ in d.start] == ['endless'] and set(d.why) == {'three', 'other'}


# Against the plainest way to write it

def plain(now, node, waiting, running, policy, usage):
    "EASY on one machine, every job tried, nothing remembered."
    s = Scheduler([node])
    free = [node.gpus - sum(a.want.gpus for a in running), node.cores - sum(a.want.cpus for a in running), node.memory - sum(a.want.mem for a in running)]
    need = lambda a: (a.want.gpus, a.want.cpus, a.want.mem)
    ok = lambda room, a: all(r >= n for r, n in zip(room, need(a)))
    end = lambda a, since: inf if a.time is None else since + a.time
    s.usage = dict(usage)
    s.now = now
    s.policy = policy
    for a in running: s.run(a)
    share = {a.user: s.share(a.user, now) for a in waiting}
    runs, started, hold, todo = [(end(a, a.started), need(a)) for a in running], [], None, list(waiting)
    while todo:
        a = min(todo, key=lambda a: (-a.priority, share[a.user], min((o.submitted, o.id) for o in todo if o.user == a.user and o.priority == a.priority), a.submitted, a.id)) if policy.fair else min(todo, key=lambda a: (-a.priority, a.submitted, a.id))
        todo.remove(a)
        ends = end(a, now)
        long = hold and not (ends <= hold[0] and ends < inf)
        if ok(free, a) and (not long or all(e >= n for e, n in zip(hold[1], need(a)))):
            free = [r - n for r, n in zip(free, need(a))]
            if long: hold[1] = [e - n for e, n in zip(hold[1], need(a))]
            runs.append((ends, need(a)))
            share[a.user] += s.kind(a).weight*policy.ahead
            started.append(a.id)
        elif not hold:
            if not policy.backfill: break
            room, t = free, now
            for e, n in sorted(runs, key=lambda o: o[0]):
                if ok(room, a) and e > t: break
                if not ok(room, a): t = max(e, now)
                room = [r + m for r, m in zip(room, n)]
            hold = [t, [r - n for r, n in zip(room, need(a))]]
    return started

@pytest.mark.parametrize('seed', range(300))
def test_the_same_as_the_plainest_way(seed):
    rng = random.Random(seed)
    node = Node('here', rng.choice([4, 8, 16]), '', rng.choice([16, 64]), 64)
    make = lambda id: Ask(id, rng.choice('abcd'), Want(rng.choice([0, 1, 1, 2, 4]), 0, rng.choice([1, 2, 6]), rng.choice([0, 1, 8])), time=rng.choice([None, 1., 5., 20., 100.]), priority=rng.choice([0, 0, 1]), submitted=float(rng.randrange(50)))
    s, running = Scheduler([node]), []
    for o in range(rng.randrange(12)):
        a = make(f'r{o}')
        if s.rooms['here'].fits(s.kind(a)):
            a = a._replace(started=50 - rng.random()*40, place=[s.rooms['here'].choose(s.kind(a))|dict(node='here')])
            s.run(a)
            running.append(a)
    waiting = [make(f'w{o:02}') for o in range(rng.randrange(1, 40))]
    policy, usage = Policy(fair=rng.random() < .7, backfill=rng.random() < .8, age=1e9), {o: (rng.random()*100, 40.) for o in 'abc'}
    assert [a.id for a, _ in decide(60., [node], waiting, running, policy, usage).start] == plain(60., node, waiting, running, policy, usage)


# Places

@pytest.mark.parametrize('seed', range(100))
def test_a_place_is_where_a_lease_would_be(seed):
    "The runner takes its lease by the rules of `leases.place`: both must choose the same devices."
    rng = random.Random(seed)
    of, held = Machine({f'GPU-{o}': rng.choice([40, 80])*GB for o in range(4)}, tuple(range(16)), 64*GB, None), []
    for _ in range(12):
        share = rng.choice([0, .25, .5, 10*GB, 60*GB])
        want = Want(rng.choice([0, 1, 2]), share, rng.choice([1, 2]), rng.choice([0, 8*GB]))
        strangers = rng.choice([{}, {'GPU-2': 5*GB}])
        if not want.gpus: want = want._replace(gpu_mem=0)
        theirs = place(want, of, held, strangers)
        d = decide(0, [Node.of(of, held, strangers)], [Ask('a', 'me', want)])
        if isinstance(theirs, str):
            if d.why['a'].startswith(theirs) or 'will never be free' in d.why['a']: continue
            raise AssertionError((theirs, dict(d.why)))
        part, = d.start[0][1]
        assert part['gpus'] == theirs['gpus'] and part['cores'] == len(theirs['cores']) and part['memory'] == theirs['memory']
        held.append(theirs)


# Making room

def test_the_fewest_the_lowest_the_youngest():
    nodes = [Node('here', 4, '', 64, 64*GB)]
    def run(id, gpus, priority, at, requeue=True): return Ask(id, 'a', Want(len(gpus), 0, 1, 0), time=1000, priority=priority, requeue=requeue, started=float(at), place=[dict(node='here', gpus=dict.fromkeys(gpus, 1 << 20), cores=1, memory=0)])
    def told(gpus, *runs, priority=5): return [o.id for o, _ in decide(10, nodes, [Ask('new', 'b', Want(gpus, 0, 1, 0), time=10, priority=priority)], runs).preempt]
    four = [run('a', [0], 0, 1), run('b', [1], 0, 2), run('c', [2], 1, 3), run('d', [3], 0, 4, requeue=False)]
    assert told(1, *four) == ['b'] and told(2, *four) == ['b', 'a'] and set(told(3, *four)) == {'a', 'b', 'c'} and told(4, *four) == []
    assert told(1, *four, priority=0) == [] and told(3, *four, priority=1) == []
    assert told(2, run('a', [0], 0, 1), run('b', [1], 0, 2), run('c', [2, 3], 3, 1)) == ['c']  # one rather than two
    d = decide(10, nodes, [Ask('new', 'b', Want(1, 0, 1, 0), priority=5)], [run('a', [0, 1, 2], 0, 1)])
    assert not d.preempt and d.start  # what fits asks nobody

def test_what_was_promised_is_kept():
    nodes = [Node('here', 2, '', 64, 64*GB)]
    low = Ask('low', 'a', Want(1, 0, 1, 0), requeue=True, started=0., place=[dict(node='here', gpus={0: 1 << 20}, cores=1, memory=0)])
    high, other = Ask('high', 'b', Want(2, 0, 1, 0), priority=5, time=10), Ask('other', 'c', Want(1, 0, 1, 0), time=5)
    d = decide(10, nodes, [high, other], [low])
    assert [o.id for o, _ in d.preempt] == ['low'] and not d.start and d.why['high'] == '1 job of lower priority makes room for it'
    d = decide(11, nodes, [high, other], [low._replace(ending=True)])
    assert not d.preempt and not d.start and d.why['high'] == 'starts when those have ended that were told to make room'
    assert [a.id for a, _ in decide(12, nodes, [high, other]).start] == ['high']

def test_many_of_higher_priority_ask_once_each():
    nodes = [Node(f'n{o}', 2, '', 64, 64*GB) for o in range(2)]
    low = [Ask(f'low{o}', 'a', Want(1, 0, 1, 0), requeue=True, time=100, submitted=float(o)) for o in range(4)]
    s = Scheduler(nodes)
    s.add(*low)
    assert len(s.decide(0).start) == 4
    s.add(*[Ask(f'high{o}', 'b', Want(1, 0, 1, 0), priority=1, time=10, submitted=5.) for o in range(3)])
    d = s.decide(5)
    assert len({o.id for o, _ in d.preempt}) == 3 and not s.decide(6).preempt
    for o, _ in d.preempt: s.end(o.id, 7)
    assert {a.id for a, _ in s.decide(7).start} == {'high0', 'high1', 'high2'}


# Whose turn it is

def test_two_users_take_turns():
    nodes = [Node('here', 2, '', 64, 64*GB)]
    asks = [Ask(f'{u}{o}', u, Want(1, 0, 1, 0), time=10, submitted=float(100*(u == 'b') + o)) for u in 'ab' for o in range(10)]
    s, order, now = Scheduler(nodes), [], 200
    s.add(*asks)
    for _ in range(10):
        started = [a.id for a, _ in s.decide(now).start]
        order += started
        now += 10
        for o in started: s.end(o, now)
    assert all({o[0] for o in order[i:i+2]} == {'a', 'b'} for i in range(0, 20, 2)) and len(order) == 20

def test_who_had_more_waits_and_is_forgiven():
    nodes = [Node('here', 1, '', 64, 64*GB)]
    asks = [Ask('first', 'greedy', Want(1, 0, 1, 0), time=10, submitted=0.), Ask('second', 'modest', Want(1, 0, 1, 0), time=10, submitted=1.)]
    week = 7*86400
    first = lambda usage, now: decide(now, nodes, asks, usage=usage).start[0][0].id
    assert first(dict(greedy=(100., 0.)), 10) == 'second' and first(dict(greedy=(100., 0.), modest=(60., 10.)), 10) == 'second'
    assert first(dict(greedy=(100., 0.), modest=(60., 1.*week)), week) == 'first'  # of 100, 50 are left

@pytest.mark.parametrize('fair', [True, False])
def test_nobody_waits_for_ever_behind_a_stream_of_more_important_ones(fair):
    s, now, waited = Scheduler([Node('here', 1, '', 64, 64*GB)], Policy(age=1000, fair=fair, preempt=False)), 0., None
    s.add(Ask('poor', 'a', Want(1, 0, 1, 0), time=10, submitted=0.))
    for n in range(1000):
        s.add(Ask(f'rich{n}', f'u{n}', Want(1, 0, 1, 0), time=10, priority=3, submitted=now))
        started = [a.id for a, _ in s.decide(now).start]
        if 'poor' in started: waited = now; break
        now += 10
        for o in started: s.end(o, now)
    assert waited and 3000 <= waited <= 3200

def test_the_account_does_not_depend_on_how_it_is_kept():
    "What a scheduler that lived through it says of each user, and what a new one is told."
    rng = random.Random(3)
    nodes = [Node('here', 8, '', 64, 64*GB)]
    p = Play(nodes, [a for a in jobs(rng, nodes, 30)], Policy(half_life=100), rng, until=120)
    fresh = Scheduler(nodes, p.policy, p.usage, p.now)
    for a in p.running.values(): fresh.run(a)
    assert p.running and all(abs(fresh.share(u, p.now + 7) - p.s.share(u, p.now + 7)) < 1e-6 for u in 'abc') and fresh.share('a', p.now) > 0


def test_what_is_told_twice_counts_once():
    nodes = [Node('here', 1, '', 64, 64*GB)]
    a, s = Ask('a', 'u', Want(1, 0, 1, 0), time=10, not_before=50.), Scheduler(nodes)
    s.add(a)
    s.add(a)
    s.add(a._replace(not_before=0.), Ask('b', 'u', Want(1, 0, 1, 0), time=10, after_open=('a',)))
    assert [o.id for o, _ in s.decide(1).start] == ['a'] and set(s.waiting) == {'b'} and set(s.decide(60).why) == {'b'}
    s.end('a', 61)
    s.drop('b')
    s.drop('b')
    assert not s.decide(62).start and not s.waiting and not s.decide(7*86400.).start


# What it says

def test_sentences():
    nodes = [Node('here', {f'GPU-{o}': 80*GB for o in range(8)}, 'NVIDIA H100', 16, 64*GB)]
    run = Ask('x', 'a', Want(6, 0, 8, 0), time=100, started=0., place=[dict(node='here', gpus=dict.fromkeys([f'GPU-{o}' for o in range(6)], 80*GB), cores=8, memory=0)])
    def why(*asks, runs=(run,), nodes=nodes, **kw): return dict(decide(10, nodes, asks, runs, **kw).why)
    a = Ask('a', 'ann', Want(4, 0, 1, 0), time=10)
    assert why(a)['a'].startswith('2 of 8 GPUs are free; starts when job x ends, at ')
    assert why(a, a._replace(id='b', submitted=1.), a._replace(id='c', submitted=2.))['c'] == '2 of 8 GPUs are free; 2 jobs are before it'
    assert why(a._replace(want=Want(0, 0, 9, 0)))['a'].startswith('8 of 16 cores are free;')
    assert why(a._replace(want=Want(0, 0, 1, 65*GB)))['a'] == '1 core, 65 GiB memory will never be free here'
    assert why(a._replace(gpu='a100'))['a'].endswith('will never be free here with a100 GPUs')
    assert why(a._replace(after_open=('y',)))['a'] == 'waits for job y' and why(a._replace(after_open=True))['a'] == 'waits for a job that has to finish before'
    assert why(a._replace(after_open=('y', 'z', 'u', 'v')))['a'] == 'waits for jobs y, z, u and 1 more'
    assert why(a._replace(not_before=50.))['a'].startswith('not before ')
    assert why(a._replace(user='a', want=Want(2, 0, 0, 0)), policy=Policy(quotas=dict(a=Quota(gpus=7))))['a'] == 'your quota of 7 GPUs is used'
    assert why(a._replace(user='a'), policy=Policy(quotas=dict(a=Quota(gpus=3))))['a'] == 'will never start: your quota is 3 GPUs'
    assert why(a, nodes=[nodes[0]._replace(strangers={'GPU-7': 5})], runs=())== {}
    full = nodes[0]._replace(held=[dict(gpus=dict.fromkeys(nodes[0].gpus, 80*GB), cores=[0], memory=0)])
    assert why(a, nodes=[full], runs=())['a'] == '0 of 8 GPUs are free; starts when a process or a lease outside of the queue gives back what it holds'
    several = [Node(f'n{o}', 8, '', 16, 64*GB) for o in range(3)]
    on = run._replace(place=[dict(node='n1', gpus=dict.fromkeys(range(6), 1 << 20), cores=8, memory=0)])
    assert why(a._replace(nodes=3), runs=[on], nodes=several)['a'].startswith('2 of 3 nodes have room for it, and it needs 3; starts when job x ends')

def test_expected_starts():
    nodes = [Node('here', 2, '', 64, 64*GB)]
    asks = [Ask(f'j{o}', 'a', Want(2 if o % 2 else 1, 0, 1, 0), time=100, submitted=float(o)) for o in range(6)]
    d = decide(10, nodes, asks)
    assert [a.id for a, _ in d.start] == ['j0', 'j2'] and dict(d.expect) == dict(j1=110, j3=210, j4=310, j5=410)
    assert decide(10, nodes, [asks[0]._replace(time=None), asks[1]]).expect == {}  # nobody knows

def test_what_is_decided_changes_nothing_that_was_given():
    nodes, usage = [Node('here', 2, '', 64, 64*GB)], dict(a=(1., 0.))
    asks = [Ask('a', 'a', Want(2, 0, 1, 0), time=10), Ask('b', 'a', Want(2, 0, 1, 0), time=10)]
    first, again = decide(5, nodes, asks, usage=usage), decide(5, nodes, asks, usage=usage)
    assert first.start == again.start and dict(first.why) == dict(again.why) and usage == dict(a=(1., 0.))

def test_ten_thousand_who_wait_are_not_looked_at_one_by_one():
    "Counted, not timed: how many rows a decision looks at when nothing can start."
    from mlstack.resources import deciding
    s = Scheduler([Node('here', 8, '', 64, 64*GB)])
    rng = random.Random(0)
    s.add(*[Ask(f'j{o:05}', rng.choice('abcdef'), Want(rng.choice([1, 2, 4]), 0, rng.choice([1, 2, 4]), 0), time=rng.random()*1e4, submitted=float(o)) for o in range(10000)])
    s.decide(20000)
    looked, was = [0], deciding._find
    try:
        deciding._find = lambda *a: looked.__setitem__(0, looked[0]+1) or was(*a)
        s.decide(20001)
    finally: deciding._find = was
    assert looked[0] <= 20 and len(s.waiting) > 9900


# The simulator

def test_a_trace_is_as_the_published_ones():
    from mlstack.resources.simulation import published, trace
    some = trace(20000, 10000, durations='helios', sizes='seren', longest=60*86400)
    of, like = sorted(o.seconds for o in some), published['helios']
    assert abs(of[len(of)//2]/like.median - 1) < .05 and .6 < sum(of)/len(of)/like.mean < 1.3  # a mean of so long a tail is never exact
    sizes = [o.ask.want.gpus*o.ask.nodes for o in some]
    assert abs(sum(sizes)/len(sizes)/published['seren'].gpus - 1) < .2 and max(sizes) <= 1024 and sorted(sizes)[len(sizes)//2] in (1, 2)
    assert all(o.seconds <= o.ask.time for o in some) and [o.ask.submitted for o in some] == sorted(o.ask.submitted for o in some)
    assert len({o.ask.time for o in some}) <= 22 and sum(o.seconds == o.ask.time for o in some) < .1*len(some)
    work = sum(n*o.seconds for n, o in zip(sizes, some))
    assert .8 < work/(10000*some[-1].ask.submitted) < .95  # some were ended at their limit

@pytest.mark.parametrize('name', ['first come', 'back-filling', 'and fair share', 'and priority', 'mlstack', 'mlstack, true limits'])
@pytest.mark.parametrize('every', [0, 30])
def test_what_is_simulated_adds_up(name, every):
    from mlstack.resources.simulation import cluster, figures, in_use, policies, simulate, trace, waits
    policy, make = policies()[name]
    jobs = [make(o) for o in trace(400, 64, load=1.3, seed=every)]
    sim = simulate(jobs, cluster(64), policy, every=every)
    assert set(sim.start) == set(sim.end) == {o.ask.id for o in jobs} and all(0 <= n <= 64 for _, n, _ in sim.used) and sim.used[-1][1:] == (0, 0)
    gpus = {o.ask.id: o.ask.want.gpus*o.ask.nodes for o in jobs}
    ran = sum(n*(b - a) for (a, n, _), (b, *_) in zip(sim.used, sim.used[1:]))
    asked = sum(o.seconds*gpus[o.ask.id] for o in jobs) + sim.lost + sum(60*gpus[i]*n for i, n in sim.preempted.items())
    assert abs(ran/asked - 1) < (1e-6 if not every else .05)
    assert min(waits(sim)) >= 0 and (name == 'mlstack' or name.endswith('limits') or not sim.preempted)
    if name == 'first come': assert all(sim.start[a.ask.id] <= sim.start[b.ask.id] for a, b in zip(jobs, jobs[1:]))
    f = figures(sim, 64)
    assert 0 < f['fair'] <= 1 and 0 < f['used'] <= 100 and f['used'] == 100*in_use(sim, 64)
    assert simulate(jobs, cluster(64), policy, every=every)[:-1] == sim[:-1]  # all but the time it took

def test_nobody_is_ended_again_and_again_at_the_same_moment():
    "Each time somebody makes room, somebody of higher priority starts: a moment has an end, whatever comes together in it."
    from mlstack.resources.simulation import cluster, trace
    for seed in range(6):
        s, now, by = Scheduler(cluster(128)), 0., {}
        for o in trace(300, 128, load=3, important=.5, again=.9, seed=seed):
            now = o.ask.submitted
            by[o.ask.id] = o.ask
            for id in [id for id, r in s.running.items() if r.end <= now]: s.end(id, now)
            s.add(o.ask)
            for _ in range(1000):
                d = s.decide(now)
                if not d.preempt: break
                for v, _ in d.preempt: s.end(v.id, now); s.add(by[v.id])
                wanted = {a.id: a.priority for _, a in d.preempt}
                e = s.decide(now)
                assert any(a.priority > 0 for a, _ in e.start) or not wanted
                for v, _ in e.preempt: s.end(v.id, now); s.add(by[v.id])
            else: pytest.fail('it never ends')

def test_the_same_in_every_process():
    "Hashes of strings differ from process to process; decisions must not."
    code = 'from mlstack.resources.simulation import *\nfrom mlstack.resources.scheduling import Policy\nr = simulate(trace(1500, 256, load=1.1), cluster(256), Policy())\nimport zlib\nprint(zlib.crc32(repr((r.start, r.end, r.used)).encode()))'
    said = {subprocess.run([sys.executable, '-c', code], env=house.environment(PYTHONHASHSEED=o, PYTHONPATH=house.root), capture_output=True, text=True, check=True, timeout=300).stdout for o in '123'}
    assert len(said) == 1

def test_a_preempted_job_goes_on_from_its_checkpoint():
    from mlstack.resources.simulation import Simulated, cluster, simulate
    low = Simulated(Ask('low', 'a', Want(8, 0, 1, 0), time=9000, requeue=True), 5000.)
    high = Simulated(Ask('high', 'b', Want(1, 0, 1, 0), time=200, priority=1, submitted=1300.), 100.)
    sim = simulate([low, high], cluster(8), checkpoint=600, restart=60)
    assert sim.preempted == dict(low=1) and sim.lost == 8*100 and sim.start['high'] == 1300 and sim.end['high'] == 1400 and sim.end['low'] == 1400 + 5000 - 1200 + 60
