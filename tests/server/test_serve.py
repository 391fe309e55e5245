"""`gptoss-mlx serve` as a process: what it says, whom it lets in, and how it ends."""

import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from contextlib import contextmanager, suppress

import httpx
import pytest

import zygote
from test_offline import NAMESPACES, works

QUESTION = {"messages": [{"role": "user", "content": "What is 12 + 30?"}]}
WITHOUT_END = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}


@pytest.fixture
def start(environment, tmp_path):
    """Start a server on a free port, with a home of its own: the process, and its address when it listens."""
    running = []

    def start(*words, **changes):
        variables = environment | {"GPTOSS_MLX_HOME": str(tmp_path)} | changes
        line = ["-m", "gptoss_mlx", "serve", *map(str, words), "--port", "0"]
        process = zygote.shared().open(line, variables)
        running.append(process)
        return process, address_of(process.stdout)

    yield start
    for process in running:
        process.kill()
        if not process.stdout.closed:
            process.communicate()


def address_of(stream):
    """Read what a server says, to the line about its memory."""
    said = ""
    while line := stream.readline():
        said += line
        if "Ctrl-C ends" in line:
            return re.search(r" served at (\S+)", said)[1]
    raise AssertionError(said)


def self_signed(folder):
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_an_answer_and_its_line_in_the_log(start, demo_folder):
    process, url = start(demo_folder, "--temperature", "0")
    assert url.startswith("http://127.0.0.1:")
    response = httpx.post(f"{url}/v1/chat/completions", json=QUESTION, timeout=60)
    assert response.json()["choices"][0]["message"]["content"] == "12 + 30 = 42"
    assert httpx.head(url).status_code == 200
    measured = httpx.get(f"{url}/metrics").text
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()
    assert process.returncode == 0
    (line,) = [line for line in log.splitlines() if "POST" in line]
    usage = response.json()["usage"]
    assert re.search(
        r"POST /v1/chat/completions 200, \d+ tokens read \(0 cached\), \d+ written, [\d.]+ tokens/s$", line
    )
    assert f"{usage['prompt_tokens']} tokens read" in line
    assert f"{usage['completion_tokens']} written" in line
    assert "42" not in line.split("written")[1].split("tokens/s")[1]
    assert "12 + 30" not in log
    assert f'gptoss_tokens_total{{kind="sampled"}} {usage["completion_tokens"]}\n' in measured
    assert 'gptoss_requests_total{path="/v1/chat/completions",status="200"} 1\n' in measured
    assert "gptoss_answers_running 0\n" in measured


def test_a_model_by_its_name_and_tag(start, demo_folder, tmp_path):
    for tag in ("--q8", ""):
        shutil.copytree(demo_folder, tmp_path / f"openai--gpt-oss-20b{tag}")
    _, url = start("gpt-oss:20b:q8")
    (model,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert model["id"] == "gpt-oss-20b:q8"


@contextmanager
def a_running_answer(url):
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=WITHOUT_END, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def test_the_end_in_the_middle_of_an_answer(start, endless_folder):
    """It is given a moment, and then ends as its protocol says; the server with it."""
    process, url = start(endless_folder, "--temperature", "0")
    with a_running_answer(url) as lines:
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert "the server is ending" in rest[-1] or rest[-1] == "data: [DONE]"
    assert any("the server is ending" in line for line in rest)
    _, log = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in log


def test_ctrl_c(start, demo_folder):
    process, url = start(demo_folder)
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    process.send_signal(signal.SIGINT)
    _, log = process.communicate()
    assert process.returncode == 130
    assert log.endswith("interrupted\n")
    assert "Traceback" not in log


def test_twice_ctrl_c_waits_for_no_answer(start, endless_folder):
    process, url = start(endless_folder, "--temperature", "0")
    with a_running_answer(url) as lines:
        process.send_signal(signal.SIGINT)
        with suppress(httpx.TransportError):
            while True:  # until it is ending, and takes no more
                httpx.get(f"{url}/health")
        process.send_signal(signal.SIGINT)
        with pytest.raises(httpx.HTTPError):
            list(lines)
    _, log = process.communicate()
    assert process.returncode == 130
    assert log.endswith("interrupted\n")
    assert "Traceback" not in log


def test_a_client_that_leaves_frees_its_place(start, endless_folder):
    process, url = start(endless_folder, "--temperature", "0", "--parallel", "1")
    with a_running_answer(url):
        pass
    with a_running_answer(url):  # which would wait for ever
        pass
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()
    assert log.count("200, the client left") == 2


def test_a_port_in_use(run, demo_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", demo_folder, "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    see = f"lsof -nP -iTCP:{port} -sTCP:LISTEN"
    assert (
        done.stderr
        == f"error: port {port} is in use: give another one with --port, or see by which program with `{see}`\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "no such host"), "there is no host"),
        (("--host", "192.0.2.1"), "192.0.2.1 is no address of this machine"),
        (("--allow-origin", "*"), "not the origin of a web page"),
        (("--tls-key", "BAD"), "--tls-key goes with --tls-cert"),
        (("--tls-cert", "BAD"), "cannot use the certificate in BAD"),
        (("--key-file", "BAD"), "BAD"),
        (("--temperature", "-1"), "temperature is -1"),
        (("--port", "65536"), "65536"),
        (("--parallel", "0"), "0 is not in the range"),
    ],
)
def test_what_cannot_be(run, demo_folder, tmp_path, words, message):
    bad = tmp_path / "bad"
    bad.write_text("no key")
    done = run("serve", demo_folder, "--port", 0, *(word.replace("BAD", str(bad)) for word in words))
    assert done.returncode in (1, 2)
    assert message.replace("BAD", str(bad)) in done.stderr
    assert done.stderr.splitlines()[-1].lower().startswith("error: ")
    assert "Traceback" not in done.stderr


def test_no_permission(run, demo_folder):
    if os.geteuid() == 0:
        pytest.skip("root may listen at every port")
    done = run("serve", demo_folder, "--port", 1)
    assert done.stderr.startswith("error: there is no permission to listen at port 1: ")


def test_a_network_needs_the_key_that_is_made(start, demo_folder, tmp_path):
    process, url = start(demo_folder, "--host", "0.0.0.0")
    local = f"http://127.0.0.1:{url.rpartition(':')[2]}"
    key = (tmp_path / "server-key").read_text().strip()
    assert stat.S_IMODE((tmp_path / "server-key").stat().st_mode) == 0o600
    assert httpx.get(f"{local}/v1/models").status_code == 401
    assert httpx.get(f"{local}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert httpx.get(f"{local}/v1/models", headers={"x-api-key": key, "host": "evil.example"}).status_code == 403
    process.send_signal(signal.SIGTERM)
    said, log = process.communicate()
    assert f"key: {key}, in " in said
    assert key not in log
    assert "warning: others in the network can read what is sent" in log
    again, _ = start(demo_folder, "--host", "0.0.0.0")
    again.send_signal(signal.SIGTERM)
    said, _ = again.communicate()
    assert key not in said
    assert "key: the same as before" in said


def test_the_key_that_was_in_the_cache_counts(start, demo_folder, tmp_path):
    old, new = tmp_path / ".cache/gptoss-mlx/server-key", tmp_path / "data/gptoss-mlx/server-key"
    old.parent.mkdir(parents=True)
    old.write_text("a-key-that-was-made-before\n")
    old.chmod(0o600)
    home = {"GPTOSS_MLX_HOME": "", "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    _, url = start(demo_folder, "--host", "0.0.0.0", **home)
    local = f"http://127.0.0.1:{url.rpartition(':')[2]}"
    assert httpx.get(f"{local}/v1/models", headers={"x-api-key": "a-key-that-was-made-before"}).status_code == 200
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert not old.exists()


def test_a_key_of_ones_own(start, demo_folder, tmp_path):
    (tmp_path / "key").write_text("a-key-of-ones-own-1\n")
    (tmp_path / "key").chmod(0o600)
    _, url = start(demo_folder, "--key-file", tmp_path / "key")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "a-key-of-ones-own-1"}).status_code == 200
    assert not (tmp_path / "server-key").exists()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_https(start, run, demo_folder, tmp_path):
    certificate, key = self_signed(tmp_path)
    _, url = start(demo_folder, "--tls-cert", certificate, "--tls-key", key)
    assert url.startswith("https://")
    with httpx.Client(verify=ssl.create_default_context(cafile=certificate)) as client:
        response = client.get(f"{url}/v1/models", headers={"origin": url})
        assert response.status_code == 200
        assert client.get(f"{url}/v1/models", headers={"origin": url.replace("https", "http")}).status_code == 403
    without = run("serve", demo_folder, "--port", 0, "--tls-cert", certificate)
    assert without.stderr.startswith(f"error: cannot use the certificate in {certificate}: ")


def test_caches_of_servers_that_were_killed_are_removed(start, demo_folder, tmp_path):
    killed, _ = start(demo_folder)
    (left,) = (tmp_path / "server-caches").iterdir()
    killed.kill()
    killed.wait()
    process, _ = start(demo_folder)
    (own,) = (tmp_path / "server-caches").iterdir()
    assert own != left
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not list((tmp_path / "server-caches").iterdir())


def page_turn(url, **fields):
    turn = httpx.post(f"{url}/page/turns", json=fields, timeout=60).json()["turn"]
    assert '"kind":"end"' in httpx.get(f"{url}/page/turns/{turn}", timeout=60).text.replace(" ", "")


@pytest.mark.parametrize("no_kv", [False, True])
def test_a_chat_of_the_page_outlives_a_server_that_was_killed(start, demo_folder, no_kv):
    options = [demo_folder, "--temperature", "0", *["--no-kv"] * no_kv]
    killed, url = start(*options)
    page_turn(url, text="My locker code is 4711.")
    page_turn(url, text="What is 12 + 30?", name="my-locker-code-is-4711")
    killed.kill()
    _, before = killed.communicate()
    process, url = start(*options)
    page_turn(url, text="What is my locker code?", name="my-locker-code-is-4711")
    process.send_signal(signal.SIGTERM)
    _, after = process.communicate()
    (_, *last), (new,) = [
        re.findall(r"a turn of the page, (\d+) tokens read \((\d+) cached\)", log) for log in (before, after)
    ]
    assert int(new[1]) == (0 if no_kv else int(last[0][0]))
    assert "locker" not in before + after


LOOPBACK_ONLY = """
import subprocess, sys
sys.path[0] = {here!r}
import httpx
from server.test_serve import QUESTION, address_of
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
process = subprocess.Popen(
    [sys.executable, "-m", "gptoss_mlx", "serve", {folder!r}, "--port", "0", "--temperature", "0"],
    stdout=subprocess.PIPE, text=True,
)
url = address_of(process.stdout)
print(httpx.post(url + "/v1/chat/completions", json=QUESTION, timeout=60).json()["choices"][0]["message"]["content"])
process.terminate()
sys.exit(process.wait())
"""


def test_needs_no_network_but_loopback(environment, demo_folder):
    namespace = next((prefix for prefix in NAMESPACES if works(*prefix, "true")), None)
    if not (namespace and shutil.which("ip")):
        pytest.skip("this system gives no network namespace, or has no program that sets up its loopback")
    program = LOOPBACK_ONLY.format(here=os.path.dirname(os.path.dirname(__file__)), folder=str(demo_folder))
    done = subprocess.run(
        [*namespace, sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "12 + 30 = 42\n"), done.stderr
