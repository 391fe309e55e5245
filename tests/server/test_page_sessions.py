"""The page's conversations after a restart of the server, and in turns with the terminal: only what is new is read."""

from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

import gptoss_mlx
from chat.conversing import Scripted
from gptoss_mlx import Sampling
from gptoss_mlx.chat import answer
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.state_files import StateFiles
from gptoss_mlx.chat.store import Store
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.model.kv_cache import FullKV

from .paging import CALL, PageServer, begin, counted, finish, html, of

QUESTIONS = ["My locker code is 4711.", "What is 12 + 30?", "What is my locker code?"]
NAME = "my-locker-code-is-4711"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sessions")


@pytest.fixture
def serving(demo_folder, store):
    @contextmanager
    def serving(store=store, kv_limit=10**9):
        """A server that has just begun, and a client of it."""
        running = PageServer(demo_folder, store, kv_limit).running()
        with running as server, httpx.Client(base_url=server.url, timeout=60) as page:
            yield server, page

    return serving


@pytest.fixture(scope="module")
def model(demo_folder):
    """The terminal's."""
    return gptoss_mlx.load(demo_folder)


@dataclass
class Turn:
    prompt: int
    cached: int
    prefilled: int
    text: str


def ask(page, text, **fields):
    kinds = [f'gptoss_tokens_total{{kind="{kind}"}}' for kind in ("prompt", "cached")]
    before = counted(page)
    pieces = finish(page, begin(page, text, settings={"temperature": 0}, **fields))
    after = counted(page)
    assert not of(pieces, "note")
    prompt, cached = (int(after[kind] - before[kind]) for kind in kinds)
    return Turn(prompt, cached, of(pieces, "stats")[0]["prefilled"], html(pieces))


def ask_all(page, questions):
    first, *others = questions
    return [ask(page, first), *(ask(page, question, name=NAME) for question in others)]


@pytest.fixture
def in_terminal(model, store):
    """Ask in the terminal: the session, and the saved positions that it began with."""

    def in_terminal(*questions, resume=True):
        session = PageServer(None, store).new_session(model)
        session.sampling = Sampling(temperature=0)
        autosave = SessionAutosave(store, store.find(NAME) if resume else None)
        positions = autosave.resume(session) if resume else 0
        for question in questions:
            list(session.send(question))
            autosave.save(session, kv=True)
        autosave.leave()
        return session, positions

    return in_terminal


def saved_files(store):
    return {path: path.stat().st_mtime_ns for path in store.find(NAME).state.iterdir()}


@pytest.fixture
def loads(monkeypatch):
    """The positions that each reading of saved files found."""
    loads, load = [], StateFiles.load
    monkeypatch.setattr(StateFiles, "load", lambda *given: loads.append(load(*given)) or loads[-1])
    return loads


def test_a_server_that_was_restarted_reads_only_what_is_new(serving, tmp_path, loads):
    with serving() as (_, page):
        before = ask_all(page, QUESTIONS[:2])
    assert loads == []
    with serving() as (_, page):
        after = ask(page, QUESTIONS[2], name=NAME)
        again = ask(page, QUESTIONS[1], name=NAME)
    assert loads == [after.cached]  # at the next turn the pool has it
    assert after.cached == before[-1].prompt
    assert after.prefilled == after.prompt - before[-1].prompt
    assert again.cached >= after.prompt
    with serving(Store(tmp_path / "others")) as (_, page):
        whole = ask_all(page, QUESTIONS)
    assert whole[-1].text == after.text


def test_without_saved_caches_it_is_read_again(serving, store):
    with serving(kv_limit=None) as (_, page):
        ask_all(page, QUESTIONS[:2])
    assert saved_files(store) == {}
    with serving() as (_, page):
        assert ask(page, QUESTIONS[2], name=NAME).cached == 0
    files = saved_files(store)
    assert files
    with serving(kv_limit=None) as (_, page):
        assert ask(page, QUESTIONS[1], name=NAME).cached == 0
    assert saved_files(store) == files


def test_a_turn_adds_only_its_new_files(serving, store):
    files = {}
    with serving() as (_, page):
        for question in QUESTIONS:
            ask(page, question, **({"name": NAME} if files else {}))
            assert files.items() < saved_files(store).items()
            files = saved_files(store)
    with serving() as (_, page):
        ask(page, QUESTIONS[1], name=NAME)
    assert files.items() < saved_files(store).items()


def test_what_the_terminal_has_read_is_not_read_again(serving, in_terminal):
    session, _ = in_terminal(*QUESTIONS[:2], resume=False)
    with serving() as (_, page):
        turn = ask(page, QUESTIONS[2], name=NAME)
    assert turn.cached == session.prompt_cache.snapshots[-1].offset
    assert turn.prefilled == turn.prompt - turn.cached


def test_the_terminal_reads_nothing_that_the_page_has_read(serving, in_terminal):
    with serving() as (_, page):
        turns = ask_all(page, QUESTIONS[:2])
    session, positions = in_terminal(QUESTIONS[2])
    assert positions == turns[-1].prompt
    (stats,) = session.stats
    assert (stats.cached, stats.prefilled) == (positions, stats.prompt - positions)


def test_page_and_terminal_in_turns(serving, in_terminal):
    """The server, which runs all the time, has less of the conversation than the disk."""
    with serving() as (server, page):
        ask(page, QUESTIONS[0])
        session, _ = in_terminal(*QUESTIONS[1:])
        turn = ask(page, QUESTIONS[1], name=NAME)
        assert turn.cached == session.stats[-1].prompt
        assert server.service.pool.resting == 1  # what the pool had before is a part of it
        _, positions = in_terminal(QUESTIONS[2])
        assert positions == turn.prompt


def test_where_the_conversation_is_another_one_now_its_beginning_is_used(serving, store, loads):
    with serving() as (_, page):
        turns = ask_all(page, [*QUESTIONS, QUESTIONS[1]])
    with serving() as (_, page):
        edited = ask(page, "What is 40 - 7?", name=NAME, keep=turns_end(store, 2))
    assert edited.cached == turns[1].prompt == loads[0]
    with serving() as (_, page):
        once_more = finish(page, begin(page, "", action="retry", name=NAME, settings={"temperature": 0}))
        assert of(once_more, "stats")[0]["prefilled"] == 1
        assert html(once_more) == edited.text
        assert page.post(f"/page/conversations/{NAME}/rename", json={"name": "other"}).status_code == 200
    with serving() as (_, page):
        assert ask(page, QUESTIONS[1], name="other").cached == edited.prompt


def turns_end(store, turns):
    """Messages of so many turns."""
    messages = Transcript.read(store.find(NAME).transcript).messages
    return [index for index, message in enumerate(messages) if message.role == "user"][turns]


@pytest.mark.parametrize("damage", ["bytes", "another file"])
def test_what_is_damaged_is_read_again(serving, store, damage):
    with serving() as (_, page):
        before = ask_all(page, QUESTIONS[:2])
    paths = sorted(saved_files(store))
    assert len(paths) > 1
    if damage == "bytes":
        data = bytearray(paths[-1].read_bytes())
        data[-100] ^= 1
        paths[-1].write_bytes(data)
    else:
        paths[0].write_bytes(paths[-1].read_bytes())
    with serving() as (_, page):
        after = ask(page, QUESTIONS[2], name=NAME)
    assert after.cached == (before[0].prompt if damage == "bytes" else 0)
    with serving() as (_, page):
        assert ask(page, QUESTIONS[1], name=NAME).cached == after.prompt  # what was written then is whole
    with serving(Store(store.folder.with_name("others"))) as (_, page):
        assert ask_all(page, QUESTIONS)[-1].text == after.text


def test_the_limit_of_the_disk_holds(serving, store):
    with serving(kv_limit=1) as (_, page):
        ask_all(page, QUESTIONS[:2])
    assert saved_files(store) == {}


def test_room_is_made_before_anything_is_read_from_the_disk(serving, monkeypatch):
    with serving() as (_, page):
        turns = ask_all(page, QUESTIONS)
    sizes, load = [], StateFiles.load
    with serving() as (server, page):
        pool = server.service.pool

        def measured(files, cache, ids):
            before = pool.nbytes
            positions = load(files, cache, ids)
            sizes.append((before, cache.nbytes))
            return positions

        monkeypatch.setattr(StateFiles, "load", measured)
        ask(page, "What is 81 - 20?")
        assert pool.nbytes > 0
        pool.budget = pool._largest(FullKV.capacity(turns[-1].prompt, server.service.context))
        assert ask(page, QUESTIONS[1], name=NAME).cached == turns[-1].prompt
        ((before, loaded),) = sizes
        assert before == 0
        assert 0 < loaded <= pool.budget


def test_a_turn_that_stops_while_others_have_its_cache_leaves_what_was_saved(serving, store, monkeypatch):
    with serving() as (server, page):
        turns = ask_all(page, QUESTIONS[:2])
        files = saved_files(store)
        with monkeypatch.context() as patched:
            patched.setattr(answer, "Sampler", Scripted)
            server.script(CALL)
            turn = begin(page, "Look.", name=NAME)
            with page.stream("GET", f"/page/turns/{turn}") as reply:
                assert any('"asking"' in part for part in reply.iter_text())
            page.post(f"/page/turns/{turn}/stop")
            finish(page, turn)
        assert saved_files(store) == files
    with serving() as (_, page):
        assert ask(page, QUESTIONS[2], name=NAME).cached == turns[-1].prompt
