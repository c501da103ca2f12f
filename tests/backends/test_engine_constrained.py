"""Answers that follow a grammar, on random models that would say anything."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import jsonschema
import numpy as np
import pytest
from support.engine_driver import Answer, Driver, load, settings_for, tiny_settings
from support.schema_corpus import CORPUS, closed
from support.structured_model import token_of

from backends.llama_cpp.engine.constrained import ConstrainedSampler
from backends.llama_cpp.engine.grammars import MAX_GRAMMARS, GrammarError
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Constraint, Finish, Generate, Sampling, Thinking
from backends.llama_cpp.structured.schema import enforceable

HOT = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=1)
PERSON = closed({"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 130}})
THINK = Thinking("<think>", "</think>", token=token_of("<think>"))


def by_schema(schema: object) -> Constraint:
    return Constraint(f"start: %json {enforceable(schema, 'schema')}")


def request(name: str, constraint: Constraint | None, sampling: Sampling = HOT, **more: Any) -> Generate:
    return Generate(name, (30, 31, 32), sampling, **{"max_tokens": 300, "constraint": constraint, **more})


def biased(**biases: float) -> Sampling:
    """Hot, with these control tokens more or less likely."""
    return Sampling(
        temperature=1.5,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        seed=1,
        logit_bias=tuple((token_of(t), b) for t, b in biases.items()),
    )


def check(answer: Answer, schema: dict[str, Any], *, whole: int | None = None) -> None:
    """Every choice that came to its end follows the schema; `whole` of them did."""
    assert answer.ended is not None
    assert answer.ended.error is None
    ended = [index for index, finish in answer.finishes.items() if finish is Finish.STOP]
    for index in ended:
        jsonschema.validate(json.loads(answer.texts[index]), schema)
    assert whole is None or len(ended) == whole


@pytest.mark.parametrize("case", CORPUS[::3], ids=lambda case: case.name)
def test_every_answer_that_ends_follows_its_schema(tiny: Model, case: Any) -> None:
    check(Driver(tiny, 4).one(request("r", by_schema(case.schema), n=2, max_tokens=150)), case.schema)


def test_constrained_and_free_answers_share_batches_without_harm(tiny: Model) -> None:
    free = request("free", None, Sampling(temperature=0), max_tokens=60)
    alone = Driver(tiny, 4).one(free).text
    driver = Driver(tiny, 4)
    number = by_schema({"type": "integer", "minimum": 100, "maximum": 999})
    answers = driver.run(request("person", by_schema(PERSON), n=2), free, request("number", number, n=3))
    check(answers["person"], PERSON, whole=2)
    assert all(100 <= int(text) <= 999 for text in answers["number"].texts.values())
    assert answers["free"].text == alone


def test_the_choices_of_a_request_go_their_own_ways(tiny: Model) -> None:
    answer = Driver(tiny, 4).one(request("r", by_schema(PERSON), n=4))
    check(answer, PERSON, whole=4)
    assert len(set(answer.texts.values())) > 1


def test_an_answer_ends_with_its_grammar_even_if_the_end_is_ignored(tiny: Model) -> None:
    endless = Sampling(temperature=1.5, seed=3, ignore_eos=True)
    answer = Driver(tiny, 4).one(request("r", by_schema({"enum": ["yes", "no"]}), endless))
    assert answer.text in ('"yes"', '"no"')
    assert answer.finishes[0] is Finish.STOP


def test_where_more_may_follow_the_model_decides_and_without_its_end_it_goes_on(tiny: Model) -> None:
    digits = Constraint("start: /[0-9]+/")
    ended = Driver(tiny, 4).one(request("r", digits, Sampling(temperature=1.5, seed=3, logit_bias=((2, 50.0),))))
    assert ended.finishes[0] is Finish.STOP
    assert ended.text.isdigit()
    endless = Sampling(temperature=1.5, seed=3, ignore_eos=True)
    assert Driver(tiny, 4).one(request("r", digits, endless, max_tokens=20)).finishes[0] is Finish.LENGTH


def test_the_end_may_come_only_where_the_grammar_ends(tiny: Model) -> None:
    wants_to_end = Sampling(temperature=1.0, seed=3, logit_bias=((2, 100.0),))
    answer = Driver(tiny, 4).one(request("r", Constraint('start: "abc" /[0-9]*/'), wants_to_end))
    assert (answer.text, answer.finishes[0]) == ("abc", Finish.STOP)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=0, logit_bias=((40, 5.0),), presence_penalty=1.0),
        Sampling(temperature=2.0, top_k=5, seed=4),
        Sampling(temperature=2.0, top_p=0.1, min_p=0.5, seed=4),
        Sampling(temperature=1.0, mirostat=2, seed=4),
        Sampling(temperature=1.0, xtc_probability=1.0, xtc_threshold=0.0, seed=4),
        Sampling(temperature=1.0, typical_p=0.5, dry_multiplier=1.0, top_n_sigma=1.0, seed=4),
    ],
    ids=["greedy", "penalties", "top_k", "top_p", "mirostat", "xtc", "others"],
)
def test_any_sampler_is_held_to_the_grammar(tiny: Model, sampling: Sampling) -> None:
    schema = closed({"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}})
    check(Driver(tiny, 4).one(request("r", by_schema(schema), sampling)), schema, whole=1)


def test_a_ban_on_all_that_may_come_fails_the_request_alone(tiny: Model) -> None:
    banned = Sampling(temperature=1.0, seed=1, logit_bias=tuple((token, float("-inf")) for token in range(17, 512)))
    driver = Driver(tiny, 4)
    answers = driver.run(request("bad", by_schema(PERSON), banned, n=2), request("good", by_schema(PERSON)))
    assert answers["bad"].ended is not None
    assert "banned" in (answers["bad"].ended.error or "")
    check(answers["good"], PERSON, whole=1)


def test_a_grammar_that_becomes_too_complex_fails_its_request_alone(tiny: Model) -> None:
    endless = Constraint("start: a{2000}\na: b{2000}\nb: /[x]/{2000}")
    answers = Driver(tiny, 4).run(request("heavy", endless), request("good", by_schema(PERSON)))
    assert "cannot be followed" in (answers["heavy"].ended.error or "")  # type: ignore[union-attr]
    check(answers["good"], PERSON, whole=1)


def test_an_unknown_grammar_is_an_error_of_its_request(tiny: Model) -> None:
    answer = Driver(tiny, 4).one(request("r", Constraint("start: nothing")))
    assert answer.ended is not None
    assert "unknown name" in (answer.ended.error or "")


def test_a_preempted_answer_goes_on_in_its_grammar(tiny: Model, tmp_path: Any) -> None:
    small = load(tiny_settings(tmp_path, n_parallel=4, n_ctx=256, prefix_slots=0))
    try:
        driver = Driver(small, 4)
        text = closed({"a": {"type": "string", "minLength": 150, "maxLength": 150}})
        requests = [request(f"r{k}", by_schema(text), Sampling(temperature=1.5, seed=k)) for k in range(6)]
        answers = driver.run(*requests)
        assert driver.generator.preemptions > 0
        for answer in answers.values():
            check(answer, text)
    finally:
        small.close()


def test_guessed_tokens_are_held_to_the_grammar_and_end_with_it(tiny: Model) -> None:
    """The same item again and again is easily guessed: the last guess must not reach behind the end of the answer."""
    constraint = Constraint("start: /(abracadabra, ){20}/")
    ticks = itertools.count()
    driver = Driver(tiny, 4, now_s=lambda: float(next(ticks)))
    guessing = driver.one(request("r", constraint, Sampling(temperature=0), max_tokens=600))
    assert guessing.text == "abracadabra, " * 20
    assert driver.generator.guesses_right > 0
    assert guessing.finishes[0] is Finish.STOP
    alone = Driver(tiny, 4).one(request("r", constraint, Sampling(temperature=0, seed=1), max_tokens=600))
    assert alone.text == guessing.text


# -- reasoning and triggers ---------------------------------------------------------------------------------------


def thoughtful(control: Model, constraint: Constraint, sampling: Sampling, **more: Any) -> Answer:
    visible = frozenset((token_of("<think>"), token_of("</think>"), token_of("[TOOL_CALLS]")))
    return Driver(control, 4).one(request("r", constraint, sampling, visible_tokens=visible, **more))


def test_reasoning_that_the_prompt_has_begun_comes_before_the_answer(control: Model) -> None:
    thinking = Thinking("<think>", "</think>", begun=True)
    constraint = Constraint(by_schema({"enum": [1, 2]}).grammar, thinking)
    answer = thoughtful(control, constraint, biased(**{"</think>": 4.0}))
    thoughts, _, rest = answer.text.partition("</think>")
    assert thoughts
    assert rest in ("1", "2")
    assert answer.finishes[0] is Finish.STOP


def test_the_answer_does_not_end_inside_the_reasoning(control: Model) -> None:
    thinking = Thinking("<think>", "</think>", begun=True)
    wants_to_end = Sampling(temperature=1.0, seed=1, logit_bias=((2, 90.0), (token_of("</think>"), 5.0)))
    answer = thoughtful(control, Constraint(by_schema({"enum": [1, 2]}).grammar, thinking), wants_to_end)
    assert answer.text.partition("</think>")[2] in ("1", "2")


@pytest.mark.parametrize(("bias", "thinks"), [(50.0, True), (-50.0, False)])
def test_a_model_that_opens_its_reasoning_itself_may(control: Model, bias: float, thinks: bool) -> None:
    constraint = Constraint(by_schema({"enum": [1, 2]}).grammar, THINK)
    answer = thoughtful(control, constraint, biased(**{"<think>": bias, "</think>": 50.0}))
    assert answer.text.startswith("<think>") is thinks
    assert answer.text.rpartition("</think>")[2] in ("1", "2")


def test_only_the_first_token_may_open_the_reasoning(control: Model) -> None:
    sampling = biased(**{"<think>": 3.0, "</think>": 50.0})
    answer = thoughtful(control, Constraint("start: /[a-z]{30}/", THINK), sampling)
    assert answer.text.removeprefix("<think></think>").count("<think>") == 0


def test_a_lazy_grammar_leaves_everything_before_its_trigger_free(control: Model) -> None:
    constraint = Constraint('start: "{" /[0-9]{3}/ "}"', triggers=("[TOOL_CALLS]",))
    free = thoughtful(control, Constraint(constraint.grammar, triggers=("never",)), HOT, max_tokens=40)
    answer = thoughtful(control, constraint, biased(**{"[TOOL_CALLS]": 3.5}))
    before, trigger, call = answer.text.partition("[TOOL_CALLS]")
    assert trigger
    assert before
    assert call[0] == "{"
    assert call[1:4].isdigit()
    assert (call[4:], answer.finishes[0]) == ("}", Finish.STOP)
    assert free.text == Driver(control, 4).one(request("r", None, HOT, max_tokens=40)).text


def test_a_lazy_answer_may_end_without_a_call(control: Model) -> None:
    constraint = Constraint('start: "x"', triggers=("[TOOL_CALLS]",))
    wants_to_end = Sampling(temperature=1.0, seed=1, logit_bias=((2, 50.0),))
    answer = thoughtful(control, constraint, wants_to_end)
    assert (answer.text, answer.finishes[0]) == ("", Finish.STOP)


def test_a_trigger_that_is_spelled_out_is_known_and_what_clings_to_it_must_follow(tiny: Model) -> None:
    """The token that ends a trigger may have more in it: it is turned down if that does not follow the grammar."""
    space, s = (
        tiny.tokenize(" t", add_special=False, parse_special=False)[0],
        tiny.tokenize("s", add_special=False, parse_special=False)[0],
    )
    assert tiny.piece(space) == b" t"
    constraint = Constraint('start: "x"', triggers=(" ",))
    likes_words = Sampling(temperature=1.0, seed=1, logit_bias=((space, 100.0), (s, 50.0)))
    answer = Driver(tiny, 4).one(request("r", constraint, likes_words, max_tokens=500))
    before, _, rest = answer.text.partition(" ")
    assert " " not in before
    assert rest in ("x", "")
    assert " t" not in answer.text


def test_what_the_client_has_written_of_an_answer_is_gone_on_with(tiny: Model) -> None:
    constraint = Constraint(by_schema(PERSON).grammar, said='{"name": "Ada", "age": 3')
    answer = Driver(tiny, 4).one(request("r", constraint))
    assert 3 <= json.loads('{"name": "Ada", "age": 3' + answer.text)["age"] <= 39


# -- cost -----------------------------------------------------------------------------------------------------------


class Recorded:
    """An inner sampler that picks what it is told, or else the best of what is left."""

    def __init__(self, wishes: list[int]) -> None:
        self.wishes = wishes
        self.picks = 0
        self.is_slow = False

    def pick(self, logits: Any) -> int:
        self.picks += 1
        wish = self.wishes[0]
        return wish if np.isfinite(logits[wish]) else int(logits.argmax())

    def accept(self, token: int) -> None:
        self.wishes.pop(0)

    def close(self) -> None:
        pass


def test_the_vocabulary_is_masked_only_where_a_token_is_turned_down(tiny: Model) -> None:
    text = '{"name": "Ada", "age": 36}'
    tokens = tiny.tokenize(text, add_special=False, parse_special=False)
    wishes = list(tokens)
    wishes[3] = 100  # a word where a name must begin
    inner = Recorded(wishes)
    constraint = by_schema(PERSON)
    sampler = ConstrainedSampler(
        inner, tiny.grammars.matcher(constraint.grammar), constraint, tiny.piece, tiny.eog_tokens
    )
    row = np.zeros(tiny.n_vocab, np.float32)
    said = []
    for _ in tokens:
        if sampler.complete:
            break
        token = sampler.pick(row)
        sampler.accept(token)
        said.append(token)
    assert sampler.masks <= 3
    assert inner.picks == len(said) + sampler.masks
    assert not row.any(), "the row is left as it was"


def test_the_distribution_is_the_one_that_a_mask_alone_would_give(tiny: Model) -> None:
    """One constrained token, drawn many times: the frequencies are those of the allowed tokens among themselves."""
    constraint = Constraint("start: /[a-d]/")
    letters = {tiny.tokenize(letter, add_special=False, parse_special=False)[0]: letter for letter in "abcd"}
    plain = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    driver = Driver(tiny, 4)
    texts: Counter[str] = Counter()
    for seed in range(400):
        texts.update(driver.one(request(f"r{seed}", constraint, Sampling(**{**_fields(plain), "seed": seed}))).text)
    logits = _row(tiny)[list(letters)]
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    for (token, letter), share in zip(letters.items(), expected, strict=True):
        assert abs(texts[letter] / 400 - share) < 0.1, (token, texts, expected)


def _fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}


def _row(model: Model) -> Any:
    from backends.llama_cpp.engine.batch import Batch

    model.clear()
    batch = Batch(3)
    batch.add_chunk([30, 31, 32], 0, 0, outputs=1)
    assert model.decode(batch) == 0
    row = model.logits(0).copy()
    model.clear()
    return row


def test_only_so_many_compiled_grammars_are_kept(tiny: Model) -> None:
    for number in range(MAX_GRAMMARS + 5):
        tiny.grammars.check(f'start: "{number}"')
    assert len(tiny.grammars._compiled) == MAX_GRAMMARS
    assert tiny.grammars.matcher('start: "0"').allows(tiny.tokenize("0", add_special=False, parse_special=False)[0])


def test_what_does_not_compile_is_said_without_the_grammar(tiny: Model) -> None:
    with pytest.raises(GrammarError) as refused:
        tiny.grammars.check('start: foo "secret"')
    assert "foo" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_real_answer_needs_few_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 asked for JSON: most of what it picks is allowed, and only the rest costs a mask."""
    model = load(settings_for(n_ctx=512, n_parallel=1, prefix_slots=0))
    masks: list[int] = []
    close = ConstrainedSampler.close
    monkeypatch.setattr(ConstrainedSampler, "close", lambda self: (masks.append(self.masks), close(self)))
    try:
        question = "<|im_start|>user\nGive the name and age of a person as JSON.<|im_end|>\n<|im_start|>assistant\n"
        prompt = tuple(model.tokenize(question, add_special=True, parse_special=True))
        driver = Driver(model, 1)
        answer = driver.one(Generate("r", prompt, Sampling(temperature=0), 80, constraint=by_schema(PERSON)))
        check(answer, PERSON, whole=1)
        assert 0 < sum(masks) < answer.tokens[0] / 2
    finally:
        model.close()
