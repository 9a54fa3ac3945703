"One run in the page, artifacts and models, and what the server refuses: strangers, other sites, paths that lead out, and content that is half there."
import http.client, http.server, json, os, re, shutil, socket, subprocess, sys, threading, time
from urllib.parse import quote, urlencode
import numpy as np
import pytest
import mlstack.tracking as track
from mlstack.tracking.media import Media
from mlstack.tracking.query import Record
from tests.house import go_to, until

NASTY = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
ODD = 'é🔥/<b>a b</b>/.. %2e'


BOXES = dict(seen=dict(box_data=[dict(position=dict(minX=.1, maxX=.5, minY=.2, maxY=.6), class_id=1, scores=dict(p=.9)), dict(position=dict(middle=[20, 20], width=10, height=10), domain='pixel', class_id=2, box_caption=NASTY)], class_labels={1: NASTY}))
EVIL = '<svg xmlns="http://www.w3.org/2000/svg" width="50" height="50" onload="parent.hit=1"><script>parent.hit=1</script><circle r="20"/></svg>'

class Chart(Media): kind, ending = 'chart-file', 'svg'
class Other(Media): kind, ending = 'molecule-file', 'pdb'
class Masked(track.Image):
    "With a mask beside it: a picture of class numbers, as W&B's shape has it."
    def stored_in(self, run):
        mask = track.Image(np.tile(np.array([[0, 1], [2, 1]], 'uint8'), (20, 20))).stored_in(run)
        return super().stored_in(run) | dict(masks=dict(truth=dict(mask, class_labels={'1': NASTY, '2': 'road'})))


def rich(folder, name='rich', project='digits', **more):
    "A run with one of each."
    with track.init(project=project, dir=folder, name=name, config=dict(lr=.1, model=dict(width=8)), tags=['one'], **more) as run:
        for step in range(30):
            run.log({'loss': 1/(step+1), 'acc': step/30}, step=step)
            if step % 10 == 9:
                run.log({'wrong': [track.Image(np.full((8, 8), 8*step, 'uint8'), caption=f'<i>{step}</i>')]*3, 'weights': track.Histogram(np.random.default_rng(step).normal(size=1000))}, step=step)
        run.log({'words': track.Table(['word', 'n'], [[f'w{i}', i*37 % 101] for i in range(300)]), 'tone': track.Audio(np.sin(np.arange(8000)/5), 8000),
            'site': track.Html('<p id=p>a page</p><script>document.body.append("ran"); try { parent.window.hit = 1; parent.document.title = "hit" } catch (e) {} fetch("/api/runs").then(() => document.body.append("fetched"), () => 0)</script>')})
        print('\x1b[31mred\x1b[0m <b>not bold</b> \x1b]0;title\x07')
        print('a warning', file=sys.stderr)
        track.alert('careful', NASTY, run=run)
        (folder/'weights.txt').write_text(f'{name} weights')
        run.log_artifact(folder/'weights.txt', name='net' if name == 'rich' else 'other', type='model', aliases=['best'])
    return run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    rich(folder)
    with track.init(project='digits', dir=folder, name=NASTY, group=NASTY, notes=NASTY, tags=[NASTY], config={NASTY: NASTY, 'long': 'x'*(1 << 20)}) as run:
        for step in range(5): run.log({ODD: step*1., NASTY: track.Image(np.zeros((4, 4), 'uint8'), caption=NASTY), 'table': track.Table([NASTY], [[NASTY], ['y'*(1 << 20)]])}, step=step)
        run.summary[NASTY] = 'z'*(1 << 20)
        run.log({'boxed': Masked(np.zeros((40, 40), 'uint8'), boxes=BOXES), 'chart': Chart(EVIL.encode()), 'other': Other(b'x')})
        run.use_artifact('net:best')
        print(NASTY)
        track.alert(NASTY, NASTY, run=run)
    track.register('digits/net:best', 'digits-net', aliases=['champion'], card=NASTY, dir=folder)
    return folder


@pytest.fixture(scope='module')
def page(folder):
    page = track.ui(port=0, block=False, dir=folder)
    yield page
    page.close()


def found(folder, name): return next(o for o in track.runs(dir=folder) if o.name == name)
def ids(record): return f'{record.project}/{record.id}'


# The server, asked directly

class Answer:
    def __init__(self, r): self.status, self.headers, self.body = r.status, r.headers, r.read()
    def json(self): return json.loads(self.body)


def ask(page, path, method='GET', body=None, **headers):
    "One request with exactly these headers; path as it is, without any tidying."
    host, port = page.server.server_address
    c = http.client.HTTPConnection(host, port, timeout=300)
    headers = {k.replace('_', '-'): v for k, v in headers.items()}
    c.putrequest(method, path, skip_host='Host' in headers, skip_accept_encoding=True)
    if body is not None and 'Content-Length' not in headers and 'Transfer-Encoding' not in headers: headers['Content-Length'] = str(len(body))
    for k, v in headers.items(): c.putheader(k, v)
    c.endheaders()
    if body: c.send(body)
    try: return Answer(c.getresponse())
    finally: c.close()


def change(page, path, body, **headers):
    headers = {'Content_Type': 'application/json', 'X_Mlstack_Token': page.server.guard.token} | headers
    return ask(page, path, 'POST', body if isinstance(body, bytes) else json.dumps(body).encode(), **{k: v for k, v in headers.items() if v is not None})


@pytest.mark.parametrize('host', ['evil.example', 'evil.example:80', '127.0.0.1.evil.example', 'localhost.evil.example', '', '[::ffff:127.0.0.1]', '0.0.0.0', 'user@127.0.0.1'])
def test_another_name_gets_nothing(page, host):
    "A name that somebody else pointed at 127.0.0.1."
    for path in ('/', '/api/runs', '/api/file?id=x&path=y'): assert ask(page, path, Host=host).status == 403
    assert change(page, '/api/describe', {}, Host=host).status != 200


def test_a_closed_page_answers_nobody(folder):
    "Also not through a connection that was open."
    page = track.ui(port=0, block=False, dir=folder)
    c = http.client.HTTPConnection(*page.server.server_address, timeout=300)
    for _ in range(2):
        c.request('GET', '/api/runs')
        assert c.getresponse().read()
    page.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        c.request('GET', '/api/runs')
        c.getresponse()


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', 'LOCALHOST:1', '[::1]:8642'])
def test_our_own_names_are_heard(page, host): assert ask(page, '/api/runs', Host=host).status == 200


def test_two_hosts_are_none(page):
    c = socket.create_connection(page.server.server_address)
    c.sendall(b'GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n')
    assert c.recv(100).startswith(b'HTTP/1.1 400')


@pytest.mark.parametrize('headers', [dict(Origin='https://evil.example'), dict(Origin='null'), dict(Origin='http://127.0.0.1:1'), dict(Sec_Fetch_Site='cross-site'), dict(Sec_Fetch_Site='same-site'),
    dict(Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='navigate')])
def test_other_sites_may_not_ask(page, folder, headers):
    id = ids(found(folder, 'rich'))
    assert ask(page, '/api/runs', **headers).status == 403
    assert change(page, '/api/describe', dict(id=id, name='taken'), **headers).status == 403
    assert found(folder, 'rich').name == 'rich'


def test_a_link_from_elsewhere_opens_the_front_page_only(page):
    link = dict(Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='navigate')
    assert ask(page, '/', **link).status == 200 and ask(page, '/', Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='no-cors').status == 403


@pytest.mark.parametrize('status, headers', [(403, dict(X_Mlstack_Token=None)), (403, dict(X_Mlstack_Token='x')), (403, dict(X_Mlstack_Token='é')), (415, dict(Content_Type='text/plain')), (415, dict(Content_Type=None)),
    (415, dict(Content_Type='application/x-www-form-urlencoded')), (415, dict(Content_Type='multipart/form-data')), (411, dict(Content_Length='-1')), (411, dict(Content_Length='')), (411, dict(Content_Length='1e3')),
    (413, dict(Content_Length='99999999')), (413, dict(Content_Length='0000000000099999999')), (411, dict(Transfer_Encoding='chunked'))])
def test_a_change_must_be_well_formed(page, folder, status, headers):
    body = b'' if 'Content_Length' in headers or 'Transfer_Encoding' in headers else json.dumps(dict(id=ids(found(folder, 'rich')), name='taken')).encode()
    assert change(page, '/api/describe', body, **headers).status == status
    assert found(folder, 'rich').name == 'rich'


@pytest.mark.parametrize('body', [b'', b'{', b'[]', b'1', b'{"id": 1}', b'{"id": null}', b'[' * 200_000, b'\xff', json.dumps(dict(id='digits/none', name='x')).encode(), b'{"id": {"a": 1}, "name": "x"}'])
def test_nonsense_is_refused_and_the_server_lives(page, body):
    assert 400 <= change(page, '/api/describe', body).status < 500
    assert 400 <= change(page, '/api/curves', body).status < 500
    assert ask(page, '/api/runs').status == 200


@pytest.mark.parametrize('path', ['media?name=wrong&i=99', 'media?name=wrong&i=x', 'media?name=none', 'histograms?name=wrong', 'histograms?name=none', 'table?path=TABLE&sort=99', 'table?path=TABLE&sort=x', 'table?path=TABLE&n=x', 'table?path=PICTURE',
    'console?first=x', 'part?part=none', 'part', 'media', 'file', 'file?path=', 'run?id=', 'run', 'artifact', 'download', 'model?name=none&version=v1', 'model?name=digits-net&version=v99'])
def test_a_question_without_an_answer(page, folder, path):
    record = found(folder, 'rich')
    path = path.replace('TABLE', media(page, record, 'words')).replace('PICTURE', media(page, record, 'wrong'))
    if 'run' not in path and 'art' not in path[:3]: path += ('&' if '?' in path else '?')+'id='+quote(ids(record))
    assert 400 <= ask(page, '/api/'+path).status < 500


def test_what_follows_a_refused_body_is_not_heard(page):
    "A second request inside a body that was not read would be ours to answer, and a proxy would not know."
    c = socket.create_connection(page.server.server_address)
    inner = b'GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'
    c.sendall(b'POST /api/describe HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n' % len(inner)+inner)
    got = b''
    while part := c.recv(65536): got += part
    assert got.count(b'HTTP/1.1 ') == 1 and got.startswith(b'HTTP/1.1 403')


def test_every_answer_is_dressed(page, folder):
    record = found(folder, 'rich')
    for path in ('/', '/api/runs', '/nothing', '/api/run?id=x', f'/api/run?{urlencode(dict(id=ids(record)))}'):
        h = ask(page, path).headers
        assert h['X-Content-Type-Options'] == 'nosniff' and h['Content-Security-Policy'].startswith("default-src 'none'") and h['Referrer-Policy'] == 'no-referrer' and not h['Access-Control-Allow-Origin']
    policy = ask(page, '/').headers['Content-Security-Policy']
    assert "'unsafe" not in policy and 'http://localhost:*' in policy and "script-src 'nonce-" in policy
    other = ask(page, '/').headers['Content-Security-Policy']
    assert re.findall('nonce-[^\']+', policy) != re.findall('nonce-[^\']+', other)


# Files

def media(page, record, name, i=-1):
    return ask(page, '/api/media?'+urlencode(dict(id=ids(record), name=name, i=i))).json()['items'][0]['path']


def file(page, record, path, raw=False, **headers):
    return ask(page, f'/api/file?id={quote(ids(record), safe="")}&path='+(path if raw else quote(path, safe='')), **headers)


def test_files_have_their_kind(page, folder):
    record = found(folder, 'rich')
    got = {k: file(page, record, media(page, record, k)) for k in ('wrong', 'tone', 'site', 'words')}
    assert [got[k].headers['Content-Type'] for k in got] == ['image/png', 'audio/wav', 'text/html; charset=utf-8', 'application/octet-stream']
    assert got['wrong'].body.startswith(b'\x89PNG') and got['words'].headers['Content-Disposition'].startswith('attachment')
    for o in got.values(): assert o.headers['Content-Security-Policy'].startswith('sandbox; ') and 'allow-' not in o.headers['Content-Security-Policy']
    part = file(page, record, media(page, record, 'tone'), Range='bytes=0-3')
    assert (part.status, part.body) == (206, b'RIFF') and file(page, record, media(page, record, 'tone'), Range='bytes=99999999-').status == 416


@pytest.mark.parametrize('path', ['../meta.json', 'media/../meta.json', 'media/..%2f..%2fmeta.json', '..%2f..%2f..%2f..%2fetc%2fpasswd', '%2e%2e/meta.json', '/etc/passwd', '%2fetc%2fpasswd', 'media/%00', 'media/\\..\\meta.json',
    'meta.json', 'code.diff', 'media', 'media/', '.', '', 'media/link', 'media/folder/x', 'media/loop', 'media/' + 'a' * 5000, '....//meta.json', 'media/%252e%252e/meta.json', 'file:///etc/passwd'])
def test_no_path_leads_out_of_the_media(page, folder, path):
    record = found(folder, 'rich')
    (folder/'outside').mkdir(exist_ok=True)
    (folder/'outside'/'x').write_text('secret')
    for name, to in (('link', folder/'outside'/'x'), ('folder', folder/'outside'), ('loop', record.path/'media'/'loop')):
        if not (link := record.path/'media'/name).is_symlink(): link.symlink_to(to)
    got = file(page, record, path, raw=True)
    assert got.status in (400, 404) and b'secret' not in got.body and b'root:' not in got.body


def test_a_media_folder_that_is_a_link_gives_nothing(page, folder):
    run = rich(folder, 'linked')
    record = found(folder, 'linked')
    path = media(page, record, 'wrong')
    (record.path/'media').rename(folder/'elsewhere')
    (record.path/'media').symlink_to(folder/'elsewhere')
    assert file(page, record, path).status == 404
    shutil.rmtree(run.path)


@pytest.mark.parametrize('id', ['../..', '.', '', 'digits', 'digits/', 'digits/..', '../runs', 'digits/.trash', '%2e%2e/x'])
def test_no_id_leads_out_of_the_runs(page, id): assert ask(page, f'/api/run?id={quote(id)}').status in (400, 404)


@pytest.mark.parametrize('ask_for', [dict(project='..', name='net', version='v0'), dict(project='digits', name='../../x', version='v0'), dict(project='digits', name='net', version='../../../x'), dict(project='digits', name='net', version='v9'),
    dict(project='digits', name='net', version='v0', file='../../../meta.json'), dict(project='digits', name='blobs', version='v0'), dict(project='', name='net', version='v0')])
def test_no_artifact_leads_out_of_its_store(page, ask_for):
    assert ask(page, f'/api/download?{urlencode(dict(dict(file="weights.txt"), **ask_for))}').status in (400, 404)
    if 'file' not in ask_for: assert ask(page, f'/api/artifact?{urlencode(ask_for)}').status in (400, 404)


def test_a_download_is_checked(page, folder):
    run = rich(folder, 'to damage', project='hurt')
    where = f'/api/download?{urlencode(dict(project="hurt", name="other", version="v0", file="weights.txt"))}'
    got = ask(page, where)
    assert (got.status, got.body, got.headers['Content-Disposition']) == (200, b'to damage weights', "attachment; filename*=UTF-8''weights.txt")
    blob = next((folder/'hurt'/'.artifacts'/'blobs').glob('*/*'))
    blob.write_bytes(b'something else')
    assert ask(page, where).status == 409
    blob.unlink()
    assert ask(page, where).status == 404
    shutil.rmtree(run.path)


def test_half_written_media_are_said_to_be(page, folder):
    run = rich(folder, 'half')
    record = found(folder, 'half')
    picture, table = (record.path/media(page, record, k) for k in ('wrong', 'words'))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:50])
    table.write_bytes(table.read_bytes()[:50])
    assert file(page, record, str(picture.relative_to(record.path))).status == 409
    assert ask(page, '/api/table?'+urlencode(dict(id=ids(record), path=str(table.relative_to(record.path))))).status == 409
    picture.write_bytes(whole)
    assert file(page, record, str(picture.relative_to(record.path))).status == 200
    with open(next((record.path/'lanes').glob('*.jsonl')), 'ab') as f: f.write(b'{"s": 99, "t": 1, "v": {"wrong": {"_type": "image-fi')
    assert ask(page, '/api/media?'+urlencode(dict(id=ids(record), name='wrong'))).json()['steps'] == [9, 19, 29]
    shutil.rmtree(run.path)


# Changes

def test_describe_remove_and_undo(page, folder):
    run = rich(folder, 'changed')
    id = f'digits/{run.id}'
    got = change(page, '/api/describe', dict(id=id, name=NASTY+'2', notes='line\nline', tags=['a', 'b', 'a'], group='g')).json()
    assert (got['name'], got['tags'], got['group']) == (NASTY+'2', ['a', 'b'], 'g')
    record = Record(run.path)
    assert (record.name, record.notes, record.tags, record.group) == (NASTY+'2', 'line\nline', ('a', 'b'), 'g')
    late = change(page, '/api/describe', dict(id=id, tags=['c'], was=['a'])).json() # a page that had not heard of b
    assert late['tags'] == ['b', 'c'], 'what it did not know stays'
    for wrong in (dict(tags=['x'], was=1), dict(state='running'), dict(tags='x'), dict(tags=[1]), dict(tags=['']), dict(name=''), dict(notes=None), dict(path='/'), {}): assert change(page, '/api/describe', dict(id=id, **wrong)).status == 400
    assert change(page, '/api/remove', dict(id=id)).status == 200 and not run.path.exists()
    gone = ask(page, f'/api/run?id={quote(id)}')
    assert gone.status == 404 and 'any more' in gone.body.decode()
    assert change(page, '/api/undo', dict(run=run.id)).status == 200 and Record(run.path).name == NASTY+'2'
    assert ask(page, f'/api/run?id={quote(id)}').status == 200
    shutil.rmtree(run.path)


def test_a_running_run_is_not_removed(page, folder):
    run = track.init(project='digits', dir=folder, name='busy')
    run.log({'loss': 1.})
    assert change(page, '/api/remove', dict(id=f'digits/{run.id}')).status == 400 and run.path.exists()
    run.finish()
    shutil.rmtree(run.path)


@pytest.mark.probe
def test_a_read_only_folder_says_so(page, folder):
    if os.getuid() == 0: pytest.skip('probe: root may write everywhere')
    run = rich(folder, 'read only')
    os.chmod(run.path/'events', 0o500)
    got = change(page, '/api/describe', dict(id=f'digits/{run.id}', name='x'))
    os.chmod(run.path/'events', 0o700)
    assert got.status == 400 and b'ermission' in got.body


def test_promote_through_the_page(page, folder):
    track.register('digits/net:best', 'to-promote', metrics=dict(acc=.9), dir=folder)
    assert change(page, '/api/promote', dict(model='to-promote', version='v1', to='champion'), X_Mlstack_Token=None).status == 403
    got = change(page, '/api/promote', dict(model='to-promote', version='v1', to='champion', why='it is better')).json()
    assert got['aliases']['champion'] == 'v1' and track.model('to-promote', dir=folder).champion.name == 'v1' and got['history'][0]['why'] == 'it is better'
    for wrong in (dict(model='none'), dict(model='../x'), dict(model='to-promote', to='../x'), dict(model='to-promote', to=['a']), dict(model='to-promote', version='v9')):
        assert change(page, '/api/promote', dict(dict(version='v1'), **wrong)).status in (400, 404)


# Other machines, proxies, notebooks

def test_open_to_others_everything_needs_the_token(folder):
    page = track.ui(port=0, block=False, dir=folder, host='127.0.0.2')  # any address but 127.0.0.1 is for others
    try:
        token = page.url.partition('?token=')[2]
        for path in ('/', '/api/runs', '/api/runs?token='+token, '/?token=wrong', '/?token='): assert ask(page, path, Host='127.0.0.1').status == 403
        front = ask(page, f'/?token={token}', Host='the-server:8642')
        assert front.status == 200
        cookie = front.headers['Set-Cookie']
        assert 'HttpOnly' in cookie and 'SameSite=Strict' in cookie
        pair = cookie.partition(';')[0]
        assert ask(page, '/api/runs', Host='the-server:8642', Cookie=f'other=1; {pair}').status == 200
        assert ask(page, '/api/runs', Host='the-server:8642', Cookie=pair.replace('mlstack-', 'other-')).status == 403
        assert change(page, '/api/undo', dict(run='x'), Host='the-server:8642', Cookie=pair, X_Mlstack_Token=None).status == 403  # a cookie alone changes nothing
    finally: page.close()


def test_a_token_may_be_asked_for_on_this_machine_too(folder):
    page = track.ui(port=0, block=False, dir=folder, token=True)
    try: assert '?token=' in page.url and ask(page, '/api/runs').status == 403 and ask(page, '/?'+page.url.partition('?')[2]).status == 200
    finally: page.close()


class Proxy(http.server.BaseHTTPRequestHandler):
    "What jupyter-server-proxy does: the prefix is taken away, Host stays what the browser said, and headers name the prefix."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def _forward(self):
        if not self.path.startswith(self.server.prefix): return self.send_error(404)
        c = http.client.HTTPConnection('127.0.0.1', self.server.to, timeout=300)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ('connection',)} | {'X-Forwarded-Context': self.server.prefix, 'X-Forwarded-Prefix': self.server.prefix}
        c.request(self.command, self.path[len(self.server.prefix):], self.rfile.read(int(self.headers.get('Content-Length') or 0)) or None, headers)
        r = c.getresponse()
        data = r.read()
        self.send_response(r.status)
        for k, v in r.headers.items():
            if k.lower() not in ('transfer-encoding', 'connection', 'server', 'date'): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data)
    do_GET = do_POST = _forward


def served(handler, host='127.0.0.1', **about):
    server = http.server.ThreadingHTTPServer((host, 0), handler)
    server.daemon_threads = True
    vars(server).update(about)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f'http://{host}:{server.server_address[1]}'


def test_in_a_jupyter_kernel_it_is_a_frame_and_does_not_block(folder):
    "A real kernel: the output of the cell is an iframe, the next cell runs, and the same cell again shows the same server."
    import nbformat
    from nbclient import NotebookClient
    code = ['import mlstack.tracking as track, urllib.request', f'page = track.ui(port=0, dir={str(folder)!r})\npage', 'print(urllib.request.urlopen(page.url).status)',
        f'print(track.ui(port=0, dir={str(folder)!r}) is page)', f'import os\nos.environ["JUPYTERHUB_SERVICE_PREFIX"] = "/user/me/"\nother = track.ui(port=0, dir={str(folder)!r})\nother', 'page.close(); other.close(); print(track.ui(port=0, dir=%r).url != page.url)' % str(folder)]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in code])
    NotebookClient(nb, timeout=300, kernel_name='python3').execute()
    html = nb.cells[1].outputs[-1]['data']['text/html']
    assert re.search(r'<iframe src="http://127\.0\.0\.1:\d+/"', html)
    assert [nb.cells[i].outputs[-1]['text'].strip() for i in (2, 3, 5)] == ['200', 'True', 'True']
    assert re.search(r'<iframe src="/user/me/proxy/\d+/\?token=[\w-]+"', nb.cells[4].outputs[-1]['data']['text/html'])


# In a browser

@pytest.fixture(scope='module')
def browser(chromium): return chromium(1300, 900)


def see(browser, page, record=None, tab='', **more):
    at = dict(run=ids(record), tab=tab) if record is not None else {}
    go_to(browser, page.url+'#'+urlencode({k: v for k, v in {**at, **more}.items() if v}), "document.querySelector('#one:not([hidden]) .onebody')?.children.length" if record is not None else "document.querySelector('.row')")


def silent(browser, but=()):
    wrong = [o['message'] for o in browser.get_log('browser') if o['level'] == 'SEVERE' and not any(b in o['message'] for b in but)]
    assert not wrong


text = lambda browser, css='.onebody': browser.execute_script(f'return document.querySelector({css!r})?.textContent ?? ""')


def test_all_tabs_of_a_run(browser, page, folder):
    record = found(folder, 'rich')
    see(browser, page, record)
    assert browser.execute_script("return [...document.querySelectorAll('.onetabs .tab')].map(o => o.textContent)")[:6] == ['Overview', 'Curves', 'Media', 'Console', 'Code', 'Environment']
    assert 'careful' in text(browser) and 'model.width' in text(browser)
    see(browser, page, record, 'curves')
    until(browser, "document.querySelectorAll('.lines .card[data-drawn]').length == 2")
    see(browser, page, record, 'media')
    until(browser, "[...document.querySelectorAll('.media-card img')].filter(o => o.complete && o.naturalWidth).length == 3")
    until(browser, "document.querySelector('.heatbox canvas')")
    see(browser, page, record, 'console')
    until(browser, "document.querySelector('.line .fg1')?.textContent == 'red'")
    assert '<b>not bold</b>' in text(browser) and browser.execute_script("return document.querySelector('.line.err').textContent") == 'a warning'
    for tab in ('code', 'environment', 'artifacts'):
        see(browser, page, record, tab)
        until(browser, "document.querySelector('.onebody').textContent.length > 5")
    until(browser, "document.querySelectorAll('.lineage .node').length >= 4")
    browser.execute_script("document.querySelector('.lineage .node.model').dispatchEvent(new MouseEvent('click', {bubbles:true}))")
    until(browser, "views.now.name == 'models' && document.querySelector('.promoter')")
    silent(browser)


def test_nothing_of_a_run_becomes_markup(browser, page, folder):
    "Name, group, notes, tags, config, summary, captions, cells, console, alerts, cards: each holds a script, and some a megabyte."
    record = found(folder, NASTY)
    for tab in ('', 'curves', 'media', 'console', 'code', 'environment', 'artifacts'):
        see(browser, page, record, tab)
        time.sleep(.5)
        assert browser.execute_script('return [window.hit ?? null, document.scripts.length]') == [None, 2], tab
        assert browser.execute_script("return document.querySelector('#one h1').textContent") == NASTY
        assert browser.execute_script("return [...document.querySelectorAll('[onerror], img[src=x]')].length") == 0, tab
    see(browser, page, record, 'curves')
    assert ODD in until(browser, "document.querySelector('.lines .card h2')?.textContent")
    see(browser, page, record, 'media')
    until(browser, "document.querySelector('figcaption')?.textContent.includes('<script>') && document.querySelector('td')?.textContent.includes('<script>')")
    assert browser.execute_script("return document.querySelector('#one').textContent.length") < 60_000  # not a megabyte
    until(browser, "document.querySelectorAll('.boxed').length == 2 && [...document.querySelectorAll('.classes span')].length == 2")
    assert browser.execute_script("const b = document.querySelectorAll('.boxed'); return [b[0].style.left, b[0].style.height, b[1].style.left, b[1].style.width]") == ['10%', '40%', '37.5%', '25%']
    until(browser, "[...document.querySelectorAll('.kind-chart-file img')].some(o => o.naturalWidth == 50)")
    browser.execute_script("document.querySelector('.kind-other').scrollIntoView()")
    until(browser, "document.querySelector('.kind-other .missing')")
    assert browser.execute_script("return [document.querySelector('.kind-other .missing').textContent, window.hit ?? null]") == ['A molecule is not drawn here. download it', None]
    for view in ('artifacts', 'models'):
        see(browser, page, view=view, artifact='digits/net:' if view == 'artifacts' else '')
        until(browser, "document.querySelectorAll('.lineage .node').length")
        assert browser.execute_script('return window.hit ?? null') is None
    silent(browser)


def test_markup_cannot_be_made_at_all(browser, page):
    "Chromium holds us to it: setting text as markup throws."
    see(browser, page)
    assert browser.execute_script("try { document.body.insertAdjacentHTML('beforeend','<b id=sneaked>x</b>'); return 'made' } catch (e) { return e.name }") == 'TypeError'
    assert browser.execute_script("try { document.body.setAttribute('onclick', 'window.hit = 2') } catch (e) { return e.name }") == 'TypeError'
    browser.get_log('browser')


def frame_text(browser):
    from selenium.common.exceptions import WebDriverException
    try:
        browser.switch_to.frame(browser.find_element('css selector', 'iframe.page'))
        return browser.execute_script("return document.body?.innerText ?? ''").strip()
    except WebDriverException: return ''  # it is loaded just now
    finally: browser.switch_to.default_content()


def test_a_logged_page_reaches_nobody(browser, page, folder):
    record = found(folder, 'rich')
    see(browser, page, record, 'media')
    until(browser, "document.querySelector('iframe.page')")
    browser.execute_script("document.querySelector('iframe.page').scrollIntoView()")
    end = time.monotonic()+300
    while not frame_text(browser).startswith('a page') and time.monotonic() < end: time.sleep(.1)
    time.sleep(.5)
    assert frame_text(browser).startswith('a page') and 'ran' not in frame_text(browser)
    title = browser.title
    browser.get_log('browser')
    browser.execute_script("[...document.querySelectorAll('.under-page button')].at(-1).click()")  # a person allows its scripts
    end = time.monotonic()+300
    while 'ran' not in frame_text(browser) and time.monotonic() < end: time.sleep(.1)
    assert 'ran' in frame_text(browser)
    time.sleep(.5)
    assert 'fetched' not in frame_text(browser) and browser.execute_script('return window.hit ?? null') is None and browser.title == title
    browser.get(page.url+'api/file?'+urlencode(dict(id=ids(record), path=media(page, record, 'site'))))  # opened by itself
    assert browser.execute_script('return origin') == 'null'
    browser.get('about:blank')
    browser.get_log('browser')


def test_editing_by_hand(browser, page, folder):
    run = rich(folder, 'edit me')
    record = Record(run.path)
    see(browser, page, record)
    typing = "const f = document.querySelector(arguments[0]); f.value = arguments[1]; f.dispatchEvent(new KeyboardEvent('keydown', {key:'Enter', ctrlKey:true, bubbles:true}))"
    browser.execute_script("document.querySelector('#one h1 .editable').click()")
    browser.execute_script(typing, '#one h1 input', '<b>new</b> name')
    until(browser, "document.querySelector('#one h1').textContent == '<b>new</b> name'")
    browser.execute_script("document.querySelector('.panel .editable.none').click()")
    browser.execute_script(typing, 'textarea.edit', 'first\nsecond')
    until(browser, "[...document.querySelectorAll('.panel .editable')].some(o => o.textContent == 'first\\nsecond')")
    browser.execute_script(typing, '.addtag', 'good')
    until(browser, "[...document.querySelectorAll('.tags .tag')].map(o => o.firstChild.textContent).join() == 'one,good'")
    browser.execute_script("document.querySelector('.tags .tag .x').click()")
    until(browser, "[...document.querySelectorAll('.tags .tag')].map(o => o.firstChild.textContent).join() == 'good'")
    again = Record(run.path)
    assert (again.name, again.notes, again.tags) == ('<b>new</b> name', 'first\nsecond', ('good',))
    browser.execute_script("document.querySelector('#one h1 .editable').click()")
    browser.execute_script("const f = document.querySelector('#one h1 input'); f.value = 'no'; f.dispatchEvent(new KeyboardEvent('keydown', {key:'Escape', bubbles:true}))")
    assert browser.execute_script("return [S.run != '', document.querySelector('#one h1').textContent]") == [True, '<b>new</b> name']
    silent(browser)

    browser.execute_script("document.querySelector('.onehead .danger').click()")
    assert run.path.exists()  # only asked so far
    browser.execute_script("document.querySelector('.confirm .danger').click()")
    until(browser, "document.querySelector('.toast') && document.querySelector('#one').hidden")
    assert not run.path.exists()
    browser.execute_script("document.querySelector('.toast button').click()")
    until(browser, f"S.order.includes('digits/{run.id}')")
    assert run.path.exists()
    silent(browser)
    shutil.rmtree(run.path)


def test_a_run_that_is_removed_while_it_is_open(browser, page, folder):
    from mlstack.tracking.housekeeping import remove_run
    run = rich(folder, 'going')
    see(browser, page, Record(run.path), 'media')
    remove_run(run.path)
    browser.execute_script('readRun()')
    assert 'not here any more' in until(browser, "document.querySelector('.lost')?.textContent")
    browser.execute_script("document.querySelector('.lost button').click()")
    until(browser, "!document.querySelector('.lost')")
    assert run.path.exists()
    silent(browser, but=('404', '400', 'frame-ancestors'))  # a logged page that went with its run, also while it was being read
    shutil.rmtree(run.path)
    browser.execute_script('readRun()')
    until(browser, "document.querySelector('.lost')")
    for tab in ('console', 'code', 'curves', 'artifacts'): browser.execute_script(f'goTab({tab!r})')
    silent(browser, but=('404', '400', 'frame-ancestors'))


def test_tables_are_sorted_and_paged(browser, page, folder):
    see(browser, page, found(folder, 'rich'), 'media')
    cells = "[...document.querySelectorAll('.tablebox tbody tr')].map(o => o.children[1].textContent).join()"
    until(browser, "document.querySelectorAll('.tablebox tbody tr').length == 25")
    browser.execute_script("document.querySelectorAll('.tablebox th button')[1].click()")
    assert until(browser, f"{cells}.startsWith('0,0,0,1,') && {cells}").count(',') == 24
    browser.execute_script("document.querySelectorAll('.tablebox th button')[1].click()")
    until(browser, f"{cells}.startsWith('100,')")
    browser.execute_script("[...document.querySelectorAll('.tabletools .step')].at(-1).click()")
    until(browser, "document.querySelector('.tabletools .count').textContent.startsWith('26')")
    browser.execute_script("const f = document.querySelector('.tabletools input'); f.value = 'w29'; f.oninput()")
    until(browser, "document.querySelector('.tabletools .count').textContent.endsWith('of 11')")
    silent(browser)


def test_a_hundred_thousand_lines(browser, page, folder):
    run = rich(folder, 'talks')
    path = next((run.path/'console').glob('*.log'))
    with open(path, 'a') as f:
        for i in range(100_000): f.write(f'{time.time():.3f} o line {i} {"NEEDLE" if i % 25_000 == 7 else ""}\n')
    see(browser, page, Record(run.path), 'console')
    until(browser, "document.querySelector('.onetools .count').textContent.startsWith('100,003')")
    until(browser, "[...document.querySelectorAll('.line')].some(o => o.textContent.includes('line 99999'))")  # the end first
    assert browser.execute_script("return document.querySelectorAll('.line').length") < 200
    browser.execute_script("document.querySelector('.console').scrollTop = 900000")
    until(browser, "[...document.querySelectorAll('.line')].some(o => /line 49\\d{3}/.test(o.textContent))")
    browser.execute_script("const f = document.querySelector('.onetools input'); f.value = 'needle'; f.oninput()")
    until(browser, "document.querySelector('.onetools .count').textContent == '1 of 4' && document.querySelector('.line.here mark')?.textContent == 'NEEDLE'")
    browser.execute_script("document.querySelectorAll('.onetools .step')[1].click()")
    until(browser, "document.querySelector('.onetools .count').textContent == '2 of 4' && document.querySelector('.line.here')?.textContent.includes('line 25007')")
    silent(browser)
    shutil.rmtree(run.path)


def test_a_live_run_is_followed(browser, page, folder):
    code = f"""
import mlstack.tracking as track, sys, numpy as np
run = track.init(project='live', dir={str(folder)!r}, name='alive')
def some(n):
    for i in range(40): run.log(loss=1/(i+n), step=i+n); print('line', i+n)
    run.log({{'shape': track.Image(np.full((4,4), n, 'uint8'))}}); sys.stdout.flush(); print('said', file=sys.stderr, flush=True)
some(1); sys.stdin.readline(); some(100); sys.stdin.readline()
"""
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    p.stderr.readline()
    see(browser, page, found(folder, 'alive'), 'console')
    until(browser, "document.querySelector('.line.err')")
    p.stdin.write('\n'); p.stdin.flush(); p.stderr.readline()
    until(browser, "[...document.querySelectorAll('.line')].some(o => o.textContent == 'line 139')")
    browser.execute_script("goTab('media')")
    until(browser, "document.querySelector('.media-card .sub')?.textContent.endsWith('2 of 2')")
    p.kill()
    p.wait()
    p.stderr.close(), p.stdin.close()
    until(browser, "document.querySelector('.onehead .state').textContent == 'killed'")
    silent(browser)


def test_models_are_promoted_by_hand(browser, page, folder):
    track.register('digits/net:best', 'by-hand', metrics=dict(acc=.9), dir=folder)
    see(browser, page, view='models', model='by-hand:v1')
    until(browser, "document.querySelector('.promoter') && document.querySelector('.shelf-title').textContent == 'by-hand'")
    browser.execute_script("document.querySelector('.promoter .wide').value = 'it is <b>good</b>'; document.querySelector('.promoter .main').click()")
    until(browser, "document.querySelector('.tag.champion') && document.querySelector('.history').textContent.includes('it is <b>good</b>')")
    assert track.model('by-hand', dir=folder).champion.name == 'v1'
    silent(browser)


def test_under_a_proxy(browser, folder):
    "As Jupyter shows it: another name, a prefix, the token once."
    page = track.ui(port=0, block=False, dir=folder, base='/user/me/proxy/{port}')
    prefix = page.server.guard.base
    assert prefix == f'/user/me/proxy/{page.server.server_address[1]}'
    server, at = served(Proxy, '127.0.0.2', prefix=prefix, to=page.server.server_address[1])
    try:
        src = re.search('src="([^"]+)"', page._repr_html_())[1]
        assert src.startswith(prefix+'/?token=')
        browser.get(at+prefix+'/')
        assert 'answers to 127.0.0.1' in browser.page_source  # a strange name, and no token
        browser.get(at+src)
        until(browser, "document.querySelectorAll('.row').length")
        assert 'token' not in browser.current_url
        browser.get(at+prefix+'/#'+urlencode(dict(run=ids(found(folder, 'rich')), tab='media')))  # the cookie from now on
        browser.refresh()
        until(browser, "[...document.querySelectorAll('.media-card img')].filter(o => o.complete && o.naturalWidth).length == 3")
        browser.execute_script("goTab('curves')")
        until(browser, "document.querySelectorAll('.lines .card[data-drawn]').length == 2")  # posts
        assert browser.execute_script('return document.cookie') == ''
    finally:
        server.shutdown(), server.server_close(), page.close()
    browser.get('about:blank')
    browser.get_log('browser')


class Stranger(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        data = self.server.html.encode()
        self.send_response(200)
        self.send_header('Content-Type', 'text/html')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_what_a_strangers_page_can_do(browser, page, folder):
    "Another origin in the same browser: it cannot frame us, read us, or change a run; Jupyter's origin on this machine may frame us."
    id, url = ids(found(folder, 'rich')), page.url
    html = f"""<iframe id=f src="{url}"></iframe><img id=i src="{url}api/file?id={quote(id)}&path={media(page, found(folder, 'rich'), 'wrong')}"><script>
window.done = []; const body = JSON.stringify({{id:{id!r}, name:'taken'}})
for (const about of [{{mode:'no-cors', headers:{{'Content-Type':'text/plain'}}}}, {{headers:{{'Content-Type':'application/json', 'X-Mlstack-Token':'x'}}}}, {{mode:'no-cors'}}]) fetch('{url}api/describe', {{method:'POST', body, ...about}}).then(r => done.push(r.type), () => done.push('refused'))
fetch('{url}api/runs').then(r => r.text()).then(t => done.push('read '+t.length), () => done.push('refused'))</script>"""
    server, at = served(Stranger, '127.0.0.2', html=html)
    try:
        browser.get(at)
        until(browser, 'done.length == 4')
        assert not [o for o in browser.execute_script('return done') if o.startswith('read')]
        assert browser.execute_script('return document.getElementById("i").naturalWidth') == 0
        end = time.monotonic()+300
        while not [o for o in browser.get_log('browser') if 'frame-ancestors' in o['message']]: assert time.monotonic() < end; time.sleep(.1)
        assert found(folder, 'rich').name == 'rich'
    finally: server.shutdown(), server.server_close()
    server, at = served(Stranger, html=f'<iframe id=f src="{url}" width=900 height=600></iframe>')
    try:
        browser.get(at.replace('127.0.0.1', 'localhost')) # which waits for what is in the frame
        browser.switch_to.frame('f')
        until(browser, "document.querySelectorAll('.row').length")
        browser.execute_script(f"openRun({id!r}); goTab('media')") if browser.execute_script(f"openRun({id!r}); return false") else None
        until(browser, "document.querySelector('.onebody')")
        browser.execute_script("goTab('media')")
        until(browser, "document.querySelector('iframe.page')")
        browser.switch_to.default_content()
    finally: server.shutdown(), server.server_close()
    silent(browser)


@pytest.mark.parametrize('dark', [False, True])
def test_every_part_fits_a_phone(chromium, page, folder, dark):
    phone = chromium(390, 844, dark=dark)
    for record in (found(folder, 'rich'), found(folder, NASTY)):
        for tab in ('', 'curves', 'media', 'console', 'code', 'environment', 'artifacts'):
            see(phone, page, record, tab)
            time.sleep(.25)
            assert phone.execute_script('return document.documentElement.scrollWidth') <= 390, tab
            assert phone.execute_script("return document.querySelector('.onebody').scrollWidth") <= 390, tab
    for view in ('artifacts', 'models'):
        see(phone, page, view=view, artifact='digits/net:v0' if view == 'artifacts' else '')
        until(phone, "document.querySelector('.shelf .lineage')")
        assert phone.execute_script('return document.documentElement.scrollWidth') <= 390, view
    silent(phone)
