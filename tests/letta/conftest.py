"""Fixtures: real Letta once a session, gateways in front of it, and both official clients."""

import datetime
import ipaddress
import pathlib
import types

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import clients
import environment
import gateway as gateways


@pytest.fixture(scope="session")
def letta():
    """Two real replicas, and what they share."""
    letta = environment.Letta()
    yield letta
    letta.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-made certificate for localhost."""
    folder = tmp_path_factory.mktemp("certificate")
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    paths = types.SimpleNamespace(cert=folder / "cert.pem", key=folder / "key.pem")
    paths.cert.write_bytes(signed.public_bytes(pem))
    paths.key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return paths


@pytest.fixture(scope="session")
def node(certificate):
    node = clients.Node(certificate.cert)
    yield node
    node.stop()


@pytest.fixture(scope="session")
def start_once(tmp_path_factory):
    """Starts gateways that live as long as the session."""
    yield from starter(tmp_path_factory)


@pytest.fixture
def start_gateway(tmp_path_factory):
    """Starts gateways that live as long as the test."""
    yield from starter(tmp_path_factory)


def starter(tmp_path_factory):
    started = []

    def start(settings):
        process = gateways.Gateway(tmp_path_factory.mktemp("gateway"), settings)
        started.append(process)
        STARTED.append(process)
        return process

    yield start
    for process in started:
        process.stop()
        STARTED.remove(process)


@pytest.fixture(scope="session")
def gateway(letta, certificate, start_once):
    """The gateway that most tests share: both replicas, a plain and a TLS listener, no cache, wide limits."""
    keys = [
        gateways.key("reader", ["read"]),
        gateways.key("messenger", ["read", "message"]),
    ]
    return start_once(gateways.config(letta, keys=keys, tls=certificate))


@pytest.fixture(params=["python", "typescript"])
def connect(request, certificate, node):
    """Makes official clients of one language: `connect(url, key, …)`."""
    made = []

    def connect(url, key="team", **options):
        text = gateways.key_text(key)
        if request.param == "python":
            client = clients.Python(url, text, **options)
        else:
            client = clients.TypeScript(node, url, text, **options)
        made.append(client)
        return client

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def client(connect, gateway):
    """An official client of the shared gateway, its own retries off so that nothing is glossed over."""
    return connect(gateway.url)


@pytest.fixture(params=["requests", "fetch"])
def http(request, node):
    """Plain HTTP with the key of `team`, as a tutorial writes it."""
    text = gateways.key_text("team")
    return clients.Requests(text) if request.param == "requests" else clients.Fetch(node, text)


@pytest.fixture
def agent(letta):
    """A fresh agent, made by asking a replica directly."""
    direct = clients.Python(letta.replicas[0].url, letta.password)
    reply = direct.call("agents.create", name="tested", model=environment.MODEL, memory_blocks=[], include_base_tools=False)
    yield types.SimpleNamespace(id=reply.value["id"])
    direct.close()


@pytest.fixture
def mortal(letta):
    """The replicas, started again after the test where it killed them."""
    yield letta
    for replica in letta.replicas:
        if replica.pid is None:
            replica.start()
            replica.wait_ready()


@pytest.fixture
def direct(letta):
    """A Python client of a replica itself, to look at what Letta holds."""
    direct = clients.Python(letta.replicas[0].url, letta.password)
    yield direct
    direct.close()


STARTED = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds to a failure what the gateways and the replicas said."""
    report = (yield).get_result()
    if not report.failed:
        return
    for number, process in enumerate(STARTED):
        report.sections.append((f"gateway {number}", process.report()))
    letta = item.funcargs.get("letta")
    for replica in letta.replicas if letta else []:
        lines = pathlib.Path(replica.log).read_text(errors="replace").splitlines()
        told = [line for line in lines if "SECURITY:" not in line]
        report.sections.append((f"end of the log of {replica.name}", "\n".join(line[:200] for line in told[-12:])))
