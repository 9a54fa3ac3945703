"""A stand-in for the API server of Kubernetes, on loopback: it checks what it is sent, keeps state, and runs the command of a pod as a process.

    with Kube(validate) as cluster:            # validate(body) raises ValueError
        cluster.kubeconfig                     # a file for KUBECONFIG
        cluster.trouble = 503                  # every request is answered with it; 'gone': connections are cut
        cluster.admit(name)                    # what Kueue does when a turn has come
        cluster.evict(name)                    # a node is drained

It answers as the real one does, in the parts that this project uses: create with dryRun, read, list by labels, delete with what belongs to it, patch, logs with follow; 400, 401, 404, 409, 422 as a Status.
What it does not do: admission, quotas, scheduling, watching. Volumes are folders, images are this machine.
"""
import base64, datetime, json, os, re, signal, socket, subprocess, sys, tempfile, threading, time, uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_label = re.compile(r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?')
_route = re.compile(r'/(?:api/(?P<core>v1)|apis/(?P<group>[\w.]+)/(?P<version>\w+))/namespaces/(?P<namespace>[\w-]+)/(?P<plural>\w+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>\w+))?')
_plurals = dict(secrets=('', 'Secret'), services=('', 'Service'), pods=('', 'Pod'), jobs=('batch', 'Job'), trainjobs=('trainer.kubeflow.org', 'TrainJob'), rayjobs=('ray.io', 'RayJob'))

class Refused(Exception):
    def __init__(self, code, reason, message): self.code, self.body = code, dict(kind='Status', apiVersion='v1', status='Failure', code=code, reason=reason, message=message, metadata={})

def now(): return datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')

def expanded(text, known):
    "As Kubernetes reads the value of a variable: $(NAME) is another one, $$ is $."
    return re.sub(r'\$(?:(\$)|\(([^()]+)\))', lambda m: '$' if m[1] else known.get(m[2], m[0]), text)

class Kube:
    def __init__(self, validate=lambda body: None, environment=None, token='a token'):
        self.validate, self.environment, self.token, self.trouble, self.things, self.processes, self.lock = validate, environment or {}, token, None, {}, {}, threading.RLock()
        self.asked, self.denied = [], set()

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix='mlstack-kube-'))
        cluster = self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            def log_message(self, *_): pass
            def do(self): cluster._handle(self)
            do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = do
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(.05,), daemon=True).start()
        self.kubeconfig = self.folder/'config'
        self.kubeconfig.write_text(json.dumps(dict(apiVersion='v1', kind='Config', clusters=[dict(name='here', cluster=dict(server=f'http://127.0.0.1:{self.server.server_port}'))], users=[dict(name='me', user=dict(token=self.token))],
            contexts=[dict(name='here', context=dict(cluster='here', user='me', namespace='lab'))], **{'current-context': 'here'})))
        return self

    def __exit__(self, *_):
        self.server.shutdown(); self.server.server_close()
        for p in self.processes.values():
            if p.poll() is None: os.killpg(p.pid, signal.SIGKILL); p.wait()
        import shutil
        shutil.rmtree(self.folder, ignore_errors=True)

    # HTTP

    def _handle(self, h):
        data = h.rfile.read(int(h.headers.get('Content-Length') or 0))
        url, query = urlsplit(h.path), {k: v[0] for k, v in parse_qs(urlsplit(h.path).query).items()}
        self.asked.append((h.command, url.path, query))
        try:
            if self.trouble == 'gone': h.close_connection = True; return h.connection.shutdown(socket.SHUT_RDWR)
            if self.trouble: raise Refused(self.trouble, 'Trouble', 'not now')
            if h.headers.get('authorization') != f'Bearer {self.token}': raise Refused(401, 'Unauthorized', 'Unauthorized')
            m = _route.fullmatch(url.path)
            if not m or m['plural'] not in _plurals or _plurals[m['plural']][0] != (m['group'] or ''): raise Refused(404, 'NotFound', 'the server could not find the requested resource')
            if m['plural'] in self.denied: raise Refused(403, 'Forbidden', f'{m["plural"]} is forbidden: User "me" cannot {h.command.lower()} resource "{m["plural"]}" in the namespace "{m["namespace"]}"')
            if m['sub'] == 'log': return self._log(h, m['namespace'], m['name'], query)
            with self.lock: said, code = self._answer(h.command, m, query, json.loads(data) if data else None)
        except Refused as e: said, code = e.body, e.code
        body = json.dumps(said).encode()
        h.send_response(code); h.send_header('Content-Type', 'application/json'); h.send_header('Content-Length', str(len(body))); h.end_headers(); h.wfile.write(body)

    def _answer(self, method, m, query, body):
        plural, namespace, name = m['plural'], m['namespace'], m['name']
        if method == 'POST': return self._create(plural, namespace, body, query), 201
        if method == 'GET' and not name:
            want = dict(o.split('=') for o in query.get('labelSelector', '').split(',') if o)
            items = [o for (p, n, _), o in self.things.items() if (p, n) == (plural, namespace) and want.items() <= (o['metadata'].get('labels') or {}).items()]
            return dict(kind=_plurals[plural][1]+'List', apiVersion='v1', metadata={}, items=items), 200
        thing = self.things.get((plural, namespace, name))
        if thing is None: raise Refused(404, 'NotFound', f'{plural} "{name}" not found')
        if method == 'DELETE': self._delete(plural, namespace, name, (body or {}).get('propagationPolicy') or query.get('propagationPolicy')); return dict(kind='Status', apiVersion='v1', status='Success', metadata={}), 200
        if method == 'PATCH': thing['metadata'] |= body.get('metadata', {}); thing.setdefault('spec', {}).update(body.get('spec', {}))
        return thing, 200

    def _create(self, plural, namespace, body, query):
        if (body.get('kind'), body.get('apiVersion', '').rpartition('/')[0]) != _plurals[plural][::-1]: raise Refused(400, 'BadRequest', f'the API version in the data ({body.get("apiVersion")}) does not match')
        name = body['metadata'].get('name', '')
        if not _label.fullmatch(name): raise Refused(422, 'Invalid', f'{body["kind"]} "{name}" is invalid: metadata.name: Invalid value')
        for k, v in (body['metadata'].get('labels') or {}).items():
            if not re.fullmatch(r'([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?', v): raise Refused(422, 'Invalid', f'metadata.labels: Invalid value: "{v}" of {k}')
        try: self.validate(body)
        except ValueError as e: raise Refused(422, 'Invalid', f'{body["kind"]} "{name}" is invalid: {e}')
        if body['kind'] == 'Secret' and sum(len(base64.b64decode(o)) for o in (body.get('data') or {}).values()) > 2**20: raise Refused(422, 'Invalid', 'data: Too long: must have at most 1048576 bytes')
        if (plural, namespace, name) in self.things: raise Refused(409, 'AlreadyExists', f'{plural} "{name}" already exists')
        thing = json.loads(json.dumps(body))
        thing['metadata'] |= dict(uid=str(uuid.uuid4()), namespace=namespace, creationTimestamp=now())
        if query.get('dryRun') != 'All':
            self.things[plural, namespace, name] = thing
            if plural in ('jobs', 'trainjobs', 'rayjobs'):
                thing['status'] = {}
                if not thing['spec'].get('suspend'): threading.Timer(.05, self._run, (plural, namespace, name)).start()
        return thing

    def _delete(self, plural, namespace, name, policy):
        thing = self.things.pop((plural, namespace, name))
        if policy == 'Orphan': return
        for key, o in list(self.things.items()):
            if any(r['uid'] == thing['metadata']['uid'] for r in o['metadata'].get('ownerReferences') or []):
                if key[0] == 'pods': self._end(key)
                else: self._delete(*key, policy)

    def _end(self, key, seconds=300):
        "A pod is told, and is gone when it has ended."
        p = self.processes.get(key)
        def wait():
            if p and p.poll() is None:
                os.kill(p.pid, signal.SIGTERM)
                try: p.wait(seconds)
                except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL); p.wait()
            with self.lock: self.things.pop(key, None)
        threading.Thread(target=wait, daemon=True).start()

    # What controllers and kubelets do

    def _run(self, plural, namespace, name):
        with self.lock:
            owner = self.things.get((plural, namespace, name))
            if owner is None: return
            spec, kind = owner['spec'], owner['kind']
            if kind == 'Job': template, n = spec['template'], spec.get('completions', 1)
            elif kind == 'TrainJob':
                patch = spec['runtimePatches'][0]['trainingRuntimeSpec']['template']['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
                main = dict(name='node', image=spec['trainer']['image'], command=spec['trainer']['command'], env=spec['trainer']['env'], volumeMounts=patch['containers'][0]['volumeMounts'])
                template, n = dict(metadata={}, spec=dict(containers=[main], volumes=patch['volumes'])), spec['trainer']['numNodes']
            else:
                head = spec['rayClusterSpec']['headGroupSpec']['template']
                template, n = json.loads(json.dumps(head)), 1
                template['spec']['containers'][0]['command'] = spec['entrypoint'].split()
            labels = {'TrainJob': 'jobset.sigs.k8s.io/jobset-name'}.get(kind, 'job-name')
            owner['status'] |= dict(active=n, ready=0)
            if kind == 'RayJob': owner['status'] |= dict(jobDeploymentStatus='Initializing', jobStatus='')
            keys = []
            for i in range(n):
                pod = dict(apiVersion='v1', kind='Pod', metadata=dict(name=f'{name}-{i}-{uuid.uuid4().hex[:5]}', namespace=namespace, uid=str(uuid.uuid4()), creationTimestamp=now(), labels=(template['metadata'].get('labels') or {}) | {labels: name},
                    annotations={'batch.kubernetes.io/job-completion-index': str(i)}, ownerReferences=[dict(uid=owner['metadata']['uid'], apiVersion=owner['apiVersion'], kind=kind, name=name)]),
                    spec=dict(nodeName='n1', containers=template['spec']['containers'], volumes=template['spec'].get('volumes')), status=dict(phase='Pending', containerStatuses=[self._waiting('ContainerCreating', '')]))
                keys.append(('pods', namespace, pod['metadata']['name']))
                self.things[keys[-1]] = pod
        threading.Thread(target=self._watch, args=(owner, keys), daemon=True).start()

    def _waiting(self, reason, message): return dict(name='main', image='x', imageID='', ready=False, restartCount=0, state=dict(waiting=dict(reason=reason, message=message)))

    def _variables(self, pod):
        found = {}
        for o in pod['spec']['containers'][0].get('env') or []:
            if 'value' in o: found[o['name']] = expanded(o['value'], found); continue
            said = o['valueFrom']
            if 'fieldRef' in said: found[o['name']] = pod['metadata']['annotations'][said['fieldRef']['fieldPath'].split("'")[1]]; continue
            secret = self.things.get(('secrets', pod['metadata']['namespace'], said['secretKeyRef']['name']))
            if secret is None: raise LookupError(f'secret "{said["secretKeyRef"]["name"]}" not found')
            found[o['name']] = base64.b64decode(secret['data'][said['secretKeyRef']['key']]).decode()
        return found

    def _start(self, key, pod):
        "The command of a pod, with its volumes as folders; paths of mounts are those of the folders."
        volumes, places = {o['name']: o for o in pod['spec']['volumes']}, {}
        for o in pod['spec']['containers'][0]['volumeMounts']:
            at = self.folder/key[2]/o['name']
            at.mkdir(parents=True, exist_ok=True)
            if said := volumes[o['name']].get('secret'):
                for item in said['items']: (at/item['path']).write_bytes(base64.b64decode(self.things['secrets', key[1], said['secretName']]['data'][item['key']]))
            if claim := volumes[o['name']].get('persistentVolumeClaim'): at = self.folder/f'claim-{claim["claimName"]}'; at.mkdir(exist_ok=True)
            places[o['mountPath']] = str(at)
        def move(word):
            at = next((k for k in places if word == k or word.startswith(k+'/')), None)
            return places[at]+word[len(at):] if at else word
        command = [move(o) for o in pod['spec']['containers'][0]['command']]
        if command[0] == 'python': command[0] = sys.executable
        env = dict(PATH=os.environ['PATH'], **self.environment) | self._variables(pod)
        with open(self.folder/f'{key[2]}.log', 'wb') as log: self.processes[key] = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def _watch(self, owner, keys):
        left, codes = list(keys), {}
        while left:
            time.sleep(.02)
            with self.lock:
                for key in list(left):
                    pod = self.things.get(key)
                    if pod is None: left.remove(key); continue
                    status = pod['status']
                    if key not in self.processes:
                        if pod['spec']['containers'][0]['image'].startswith('missing/'): status['containerStatuses'] = [self._waiting('ImagePullBackOff', 'Back-off pulling image')]; continue
                        try: self._start(key, pod)
                        except LookupError as e: status['containerStatuses'] = [self._waiting('CreateContainerConfigError', str(e))]; continue
                        status |= dict(phase='Running', containerStatuses=[dict(name='main', image='x', imageID='', ready=True, restartCount=0, state=dict(running=dict(startedAt=now())))])
                        owner['status']['ready'] = owner['status'].get('ready', 0)+1
                        if owner['kind'] == 'TrainJob': owner['status']['jobsStatus'] = [dict(name='node', ready=1, succeeded=0, failed=0, active=1, suspended=0)]
                        if owner['kind'] == 'RayJob': owner['status'] |= dict(jobDeploymentStatus='Running', jobStatus='RUNNING')
                    elif (code := self.processes[key].poll()) is not None:
                        codes[key] = code = 128-code if code < 0 else code
                        status |= dict(phase='Failed' if code else 'Succeeded', containerStatuses=[dict(name='main', image='x', imageID='', ready=False, restartCount=0, state=dict(terminated=dict(exitCode=code, reason='OOMKilled' if code == 137 else 'Error' if code else 'Completed')))])
                        left.remove(key)
        with self.lock:
            if len(codes) < len(keys): return
            bad = any(codes.values())
            owner['status'] |= dict(active=0, ready=0)
            if owner['kind'] == 'RayJob': owner['status'] |= dict(jobDeploymentStatus='Failed' if bad else 'Complete', jobStatus='FAILED' if bad else 'SUCCEEDED')
            else: owner['status']['conditions'] = [dict(type='Failed' if bad else 'Complete', status='True', reason='BackoffLimitExceeded' if bad else '', message='Job has reached the specified backoff limit' if bad else '', lastTransitionTime=now())]

    def _log(self, h, namespace, name, query):
        key = 'pods', namespace, name
        with self.lock: pod, p = self.things.get(key), self.processes.get(key)
        if pod is None: said, code = Refused(404, 'NotFound', f'pods "{name}" not found').body, 404
        elif p is None: said, code = Refused(400, 'BadRequest', f'container "main" in pod "{name}" is waiting to start: ContainerCreating').body, 400
        else: said, code = None, 200
        if said:
            body = json.dumps(said).encode()
            h.send_response(code); h.send_header('Content-Type', 'application/json'); h.send_header('Content-Length', str(len(body))); h.end_headers(); h.wfile.write(body)
            return
        h.send_response(200); h.send_header('Content-Type', 'text/plain'); h.send_header('Transfer-Encoding', 'chunked'); h.end_headers()
        with open(self.folder/f'{name}.log', 'rb') as f:
            while True:
                last = query.get('follow') != 'true' or p.poll() is not None
                while data := f.read(1 << 16): h.wfile.write(b'%x\r\n%s\r\n' % (len(data), data)); h.wfile.flush()
                if last: break
                time.sleep(.02)
        h.wfile.write(b'0\r\n\r\n')

    # What others do to a job

    def thing(self, plural, name): return self.things.get((plural, 'lab', name))
    def admit(self, plural, name):
        with self.lock: self.thing(plural, name)['spec']['suspend'] = False
        self._run(plural, 'lab', name)
    def kill(self, name):
        "Its pods are killed, as for want of memory."
        for key, p in list(self.processes.items()):
            if key[2].startswith(name) and p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
