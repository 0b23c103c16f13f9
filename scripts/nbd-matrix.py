#!/usr/bin/env python3
"""Asks NBD servers what they can, by bare bytes, and writes the table of docs/NBD.md.

Each cell comes from a run: yes, no, or `cut` where the connection ends instead of an answer. Servers are described in JSON,
one an argument: {"name", "socket", "export"}, and if there are such {"tls_port", "certificates"} (TLS required there) and
{"past_socket", "past_export", "bitmap"} (where the past is shown, and a context of it). With --peers the servers of others
that are installed come first, each with the options that let it do most.
"""

import contextlib, json, os, pathlib, resource, signal, socket, ssl, struct, subprocess, sys, tempfile, time

SIZE = 256 << 20
ACK, INFO, CONTEXT, ERROR = 1, 3, 4, 1 << 31
ERR_TLS_REQD = ERROR + 5
EXPORT_NAME, LIST, STARTTLS, OPT_INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 3, 5, 6, 7, 8, 9, 10, 11
READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS = 0, 1, 3, 4, 5, 6, 7
FUA, DF, REQ_ONE = 1, 4, 8
EINVAL, ENOSPC = 22, 28


class Cut(Exception):
    """The server has ended the connection."""


def counted(text):
    return struct.pack(">I", len(text)) + text.encode()


class Client:
    """A connection: its options, then its requests."""

    def __init__(self, to):
        family = socket.AF_UNIX if isinstance(to, str) else socket.AF_INET
        self.s = socket.socket(family)
        self.s.settimeout(20)
        self.s.connect(to)
        self.extended = False
        self.hello = self.take(18)
        self.s.sendall(struct.pack(">I", 3))

    def take(self, n):
        got = b""
        while len(got) < n:
            try:
                part = self.s.recv(n - len(got))
            except OSError as e:
                raise Cut from e
            if not part:
                raise Cut
            got += part
        return got

    def send(self, data):
        try:
            self.s.sendall(data)
        except OSError as e:
            raise Cut from e

    def option(self, option, payload=b""):
        self.send(b"IHAVEOPT" + struct.pack(">II", option, len(payload)) + payload)
        return self.answers()

    def answers(self):
        """All answers to an option, the last of which is final: kinds and payloads."""
        out = []
        while not out or (out[-1][0] != ACK and not out[-1][0] & ERROR):
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            out.append((kind, self.take(length)))
        return out

    def go(self, export, option=GO, kinds=()):
        payload = counted(export) + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)
        answers = self.option(option, payload)
        if answers[-1][0] != ACK:
            raise LookupError(answers[-1][1].decode())
        told = {struct.unpack(">H", p[:2])[0]: p[2:] for kind, p in answers if kind == INFO}
        self.size, self.flags = struct.unpack(">QH", told[0])
        return told

    def contexts(self, option, export, *queries):
        payload = counted(export) + struct.pack(">I", len(queries)) + b"".join(map(counted, queries))
        answers = self.option(option, payload)
        return [p[4:].decode() for kind, p in answers if kind == CONTEXT]

    def tls(self, certificates, with_certificate=True):
        context = ssl.create_default_context(cafile=f"{certificates}/ca-cert.pem")
        if with_certificate:
            context.load_cert_chain(f"{certificates}/client-cert.pem", f"{certificates}/client-key.pem")
        self.s = context.wrap_socket(self.s, server_hostname="localhost")

    def ask(self, command, offset=0, length=0, flags=0, payload=b""):
        """A request; its error, and the chunks of its answer (a simple reply is one of kind `simple`)."""
        magic, code = (0x21E41C71, ">IHHQQQ") if self.extended else (0x25609513, ">IHHQQI")
        if self.extended and command == WRITE:
            flags |= 32
        self.send(struct.pack(code, magic, flags, command, 77, offset, length) + payload)
        error, chunks, done = 0, [], False
        while not done:
            magic = struct.unpack(">I", self.take(4))[0]
            if magic == 0x67446698:
                error, _ = struct.unpack(">IQ", self.take(12))
                data = self.take(length) if command == READ and not error else b""
                return error, [("simple", data)]
            if self.extended:
                done, kind, _, _, n = struct.unpack(">HHQQQ", self.take(28))
            else:
                done, kind, _, n = struct.unpack(">HHQI", self.take(16))
            body = self.take(n)
            chunks.append((kind, body))
            if kind & 0x8000:
                error = struct.unpack(">I", body[:4])[0]
        return error, chunks


ROWS = []


def row(what, needs=()):
    """A feature, its probe, and what a server must have for it to be probed at all."""
    return lambda probe: ROWS.append((what, needs, probe)) or probe


def opened(server, style=STRUCTURED, contexts=()):
    c = Client(server["socket"])
    if style and c.option(style)[-1][0] != ACK:
        raise LookupError("no such style")
    c.extended = style == EXTENDED
    if contexts and len(c.contexts(SET_META, server["export"], *contexts)) < len(contexts):
        raise LookupError("no such context")
    c.go(server["export"])
    return c


def session(server):
    """A session in the newest style that is not experimental."""
    try:
        return opened(server)
    except LookupError:
        return opened(server, None)


def lives(c):
    return c.ask(READ, 0, 512)[0] == 0


@row("an unknown option is refused and the talk goes on")
def _(s):
    c = Client(s["socket"])
    return c.option(4242, b"abc")[-1][0] == ERROR + 1 and bool(c.go(s["export"]))


@row("`EXPORT_NAME`, the old way in")
def _(s):
    c = Client(s["socket"])
    c.send(b"IHAVEOPT" + struct.pack(">I", EXPORT_NAME) + counted(s["export"]))
    return struct.unpack(">Q", c.take(10)[:8])[0] == SIZE


@row("`INFO` and `GO`")
def _(s):
    c = Client(s["socket"])
    c.go(s["export"], OPT_INFO)
    return bool(c.go(s["export"]))


@row("block sizes are told (minimum, preferred, maximum)")
def _(s):
    told = Client(s["socket"]).go(s["export"], kinds=[3])
    return " / ".join(map(str, struct.unpack(">III", told[3]))) if 3 in told else "no"


@row("`LIST`")
def _(s):
    return any(s["export"].encode() in p for _, p in Client(s["socket"]).option(LIST))


@row("descriptions of exports, when asked for")
def _(s):
    return 2 in Client(s["socket"]).go(s["export"], kinds=[2])


@row("a name of 5,000 bytes is refused and the talk goes on")
def _(s):
    c = Client(s["socket"])
    try:
        c.go("x" * 5000)
    except LookupError:
        return bool(c.go(s["export"]))


@row("structured replies")
def _(s):
    return bool(opened(s))


@row("extended headers, 64-bit lengths")
def _(s):
    return lives(opened(s, EXTENDED))


@row("`BLOCK_STATUS` with a payload")
def _(s):
    return bool(opened(s, EXTENDED, ["base:allocation"]).flags & 1 << 12)


@row("`base:allocation`")
def _(s):
    error, chunks = opened(s, contexts=["base:allocation"]).ask(STATUS, 0, 1 << 20)
    return not error and chunks[0][0] == 5


@row("`REQ_ONE` gives one extent, within the range")
def _(s):
    c = opened(s, contexts=["base:allocation"])
    error, chunks = c.ask(STATUS, 0, 4096, REQ_ONE)
    return not error and len(chunks[0][1]) == 12 and struct.unpack(">I", chunks[0][1][4:8])[0] <= 4096


def selects(s, context):
    c = Client(s.get("past_socket", s["socket"]))
    c.option(STRUCTURED)
    return context in c.contexts(SET_META, s.get("past_export", s["export"]), context)


@row("`qemu:dirty-bitmap:`")
def _(s):
    return selects(s, s.get("bitmap", "qemu:dirty-bitmap:b"))


@row("`qemu:allocation-depth`")
def _(s):
    return selects(s, "qemu:allocation-depth")


@row("an earlier point by the name of the export")
def _(s):
    to, export = s.get("past_socket", s["socket"]), s.get("past_export", s["export"] + "@latest")
    with contextlib.suppress(LookupError):
        # There are servers that take any name for the one export that they have.
        return not Client(to).go("of-nothing@latest")
    return bool(Client(to).go(export))


for bit, what in [
    (2, "`FLUSH`"),
    (3, "`FUA`"),
    (5, "`TRIM`"),
    (6, "`WRITE_ZEROES`"),
    (11, "`FAST_ZERO`"),
    (7, "`DF`, unfragmented reads,"),
    (8, "`CAN_MULTI_CONN`"),
    (10, "`CACHE`"),
]:
    row(f"{what} is offered")(lambda s, bit=bit: bool(session(s).flags & 1 << bit))


@row("`FUA` and `FLUSH` are answered")
def _(s):
    c = session(s)
    return c.ask(WRITE, 0, 512, FUA, b"x" * 512)[0] == c.ask(FLUSH)[0] == 0


@row("holes are not sent (`OFFSET_HOLE`)")
def _(s):
    error, chunks = opened(s).ask(READ, SIZE - (4 << 20), 1 << 20)
    return not error and any(kind == 2 for kind, _ in chunks)


@row("an unfragmented read of 1 MiB is one chunk of data")
def _(s):
    error, chunks = opened(s).ask(READ, 0, 1 << 20, DF)
    return not error and [kind for kind, _ in chunks] == [1]


@row("zeroes longer than a payload may be (64 MiB)")
def _(s):
    return session(s).ask(ZEROES, 128 << 20, 64 << 20)[0] == 0


@row("one byte, at an odd place")
def _(s):
    c = session(s)
    return c.ask(WRITE, 4097, 1, 0, b"y")[0] == 0 and c.ask(READ, 4097, 1)[0] == 0


@row("requests of length zero do no harm")
def _(s):
    c = session(s)
    for command in (READ, WRITE, TRIM, ZEROES):
        c.ask(command, 0, 0)
    return lives(c)


def refused(s, error, *request):
    c = session(s)
    got = c.ask(*request)[0]
    name = {0: "done", EINVAL: "`EINVAL`", ENOSPC: "`ENOSPC`", 5: "`EIO`", 95: "`ENOTSUP`"}.get(got, str(got))
    return lives(c) and (got == error or name)


@row("a write past the end: `ENOSPC`, and the connection lives")
def _(s):
    return refused(s, ENOSPC, WRITE, SIZE - 256, 512, 0, b"z" * 512)


@row("a read past the end: `EINVAL`, and the connection lives")
def _(s):
    return refused(s, EINVAL, READ, SIZE - 256, 512)


@row("an unknown command: `EINVAL`, and the connection lives")
def _(s):
    return refused(s, EINVAL, 99, 0, 512)


@row("an unknown flag: `EINVAL`, and the connection lives")
def _(s):
    return refused(s, EINVAL, READ, 0, 512, 1 << 12)


@row("a write of 40 MiB is answered, and the connection lives")
def _(s):
    c = session(s)
    c.ask(WRITE, 0, 40 << 20, 0, bytes(40 << 20))
    return lives(c)


@row("1,100 clients that say nothing lock nobody out")
def _(s):
    idle = []
    with contextlib.suppress(OSError, Cut):
        for _ in range(1100):
            idle.append(Client(s["socket"]))
    served = lives(session(s))
    for c in idle:
        c.s.close()
    return served


@row("TLS with client certificates", ["tls_port"])
def _(s):
    c = Client(("localhost", s["tls_port"]))
    c.option(STARTTLS)
    c.tls(s["certificates"])
    return bool(c.go(s["export"]))


@row("a client without a certificate is refused", ["tls_port"])
def _(s):
    c = Client(("localhost", s["tls_port"]))
    c.option(STARTTLS)
    try:
        c.tls(s["certificates"], with_certificate=False)
        c.go(s["export"])
    except (OSError, Cut):
        return True


@row("where TLS is required nothing is told before it", ["tls_port"])
def _(s):
    c = Client(("localhost", s["tls_port"]))
    return {c.option(o, p)[-1][0] for o, p in [(LIST, b""), (GO, counted(s["export"]) + b"\0\0")]} == {ERR_TLS_REQD}


@row("what is slipped in behind `STARTTLS` is not heard in TLS", ["tls_port"])
def _(s):
    c = Client(("localhost", s["tls_port"]))
    slipped = b"IHAVEOPT" + struct.pack(">II", STRUCTURED, 0)
    c.send(b"IHAVEOPT" + struct.pack(">II", STARTTLS, 0) + slipped)
    try:
        c.answers()
        c.tls(s["certificates"])
        c.go(s["export"])
        c.ask(READ, 0, 512)
    except (OSError, Cut):
        return True
    return c.ask(READ, 0, 512)[1][0][0] == "simple"


def probe(server, needs, ask):
    if not all(n in server for n in needs):
        return "no"
    try:
        found = ask(server)
    except Cut:
        return "cut"
    except (LookupError, struct.error):
        return "no"
    return found if isinstance(found, str) else "yes" if found else "no"


@contextlib.contextmanager
def peers(folder):
    """Starts the servers of others; certificates are made by the commands of docs/NBD.md."""
    document = (pathlib.Path(__file__).parent.parent / "docs/NBD.md").read_text()
    commands = document.split("```sh\n")[1].split("```")[0]
    subprocess.run(["bash", "-ec", commands], cwd=folder, check=True, capture_output=True)
    raw, qcow = f"{folder}/raw", f"{folder}/qcow"
    with open(raw, "wb") as f:
        f.truncate(SIZE)
    for args in (["create", "-q", "-f", "qcow2", qcow, str(SIZE)], ["bitmap", "--add", qcow, "b"]):
        subprocess.run(["qemu-img", *args], check=True)
    ports = []
    for _ in range(3):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            ports.append(s.getsockname()[1])
    # It listens on one socket, unix or TCP.
    for name, force, at in [
        ("nbd-server", "false", f"unixsock = {folder}/nbd-server"),
        ("nbd-server-tls", "true", f"listenaddr = 127.0.0.1\n  port = {ports[2]}"),
    ]:
        (pathlib.Path(folder) / f"{name}.conf").write_text(f"""[generic]
  {at}
  allowlist = true
  certfile = {folder}/server-cert.pem
  keyfile = {folder}/server-key.pem
  cacertfile = {folder}/ca-cert.pem
  force_tls = {force}
[vol]
  exportname = {raw}
  flush = true
  fua = true
  trim = true
""")
    creds = f"tls-creds-x509,id=t,endpoint=server,dir={folder},verify-peer=yes"
    qemu = ["qemu-nbd", "-t", "-e", "0", "-x", "vol", "-D", "a volume", "-f"]
    commands = [
        [*qemu, "qcow2", "-B", "b", "-A", "--discard=unmap", "-k", f"{folder}/qemu-nbd", qcow],
        [*qemu, "raw", "--object", creds, "--tls-creds", "t", "-b", "127.0.0.1", "-p", str(ports[0]), raw],
        ["nbdkit", "-f", "-U", f"{folder}/nbdkit", "file", raw],
        ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(ports[1]), "--tls=require", "--tls-verify-peer",
         f"--tls-certificates={folder}", "file", raw],
    ]  # fmt: skip

    def stop(pid_file):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pathlib.Path(pid_file).read_text()), signal.SIGTERM)

    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context(open(f"{folder}/log", "ab"))
            stack.callback(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL).kill)
        for name in ("nbd-server", "nbd-server-tls"):
            # It goes into the background by itself.
            stack.callback(stop, f"{folder}/{name}.pid")
            subprocess.run([name.removesuffix("-tls"), "-C", f"{folder}/{name}.conf", "-p", f"{folder}/{name}.pid"], check=True)
        version = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]
        names = {
            "qemu-nbd": version("qemu-nbd", "--version").split()[1],
            "nbdkit": version("nbdkit", "--version").split()[1],
            "nbd-server": version("nbd-server", "--version").split()[-1],
        }
        out = []
        for (name, number), port in zip(names.items(), ports, strict=True):
            deadline = time.monotonic() + 20
            while not os.path.exists(f"{folder}/{name}") and time.monotonic() < deadline:
                time.sleep(0.05)
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
                    break
                time.sleep(0.05)
            export = "" if name == "nbdkit" else "vol"
            out.append({"name": f"{name} {number}", "socket": f"{folder}/{name}", "export": export,
                        "tls_port": port, "certificates": folder})  # fmt: skip
        yield out


def main():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit[1], 8192), limit[1]))
    servers = [json.loads(arg) for arg in sys.argv[1:] if arg != "--peers"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if "--peers" in sys.argv[1:]:
            servers = stack.enter_context(peers(folder)) + servers
        print("| | " + " | ".join(s["name"] for s in servers) + " |")
        print("| --- |" + " --- |" * len(servers))
        for what, needs, ask in ROWS:
            print(f"| {what} | " + " | ".join(probe(s, needs, ask) for s in servers) + " |", flush=True)


main()
