"""Prompt files, prompt styles, the comparison of a pair, and three prompts on common slots."""

import json
import re
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from support.models import tokenizer_of
from transformers import T5Tokenizer

from v2edit.backbones.families import FAMILIES
from v2edit.errors import UserError
from v2edit.prompts import PromptPair, align, align_triple, read_prompts, write_prompts
from v2edit.prompts.align import longest_common_subsequence
from v2edit.prompts.chat import Picture
from v2edit.prompts.comparison import MARKS, PromptComparison, compare_prompts
from v2edit.prompts.lvlm import MIN_SHARED, find_faults
from v2edit.prompts.style import STYLES, PromptStyle, read_style, shipped_styles, split_words
from v2edit.prompts.tokens import PromptTokenizer

LENGTH = 226
TOKENIZER = PromptTokenizer(tokenizer_of(LENGTH), LENGTH)
SHORT = PromptTokenizer(tokenizer_of(12), 12)
# Words that the tokenizer knows, words and letters that it does not, numbers, emoji, joined and right-to-left scripts.
phrases = st.lists(
    st.sampled_from(
        ["a", "red", "blue", "ball", "cube", "floor", "zebra", "42", "3.5", "naïve", "球", "😀👍🏽", "مرحبا", "ﬁ"]
    )
    | st.text(max_size=6),
    max_size=12,
).map(" ".join)


# --- comparison -------------------------------------------------------------------------------------


def without_spaces(text: str) -> str:
    return "".join(text.split())


def counts(comparison: PromptComparison) -> tuple[int, int, int, int]:
    return comparison.shared, comparison.changed, comparison.added, comparison.removed


@given(phrases, phrases)
@example("", "")
@example("", "a red ball")
@example("a red ball", "a red ball")
@example("a " * 300, "a " * 299 + "red")
@example("😀" * 10_000, "ball " * 2_000)
def test_a_comparison_contains_both_prompts(source: str, target: str) -> None:
    comparison = compare_prompts(source, target, TOKENIZER)
    tails = [text for kind, text in comparison.pieces if kind == "cut"]
    for prompt, hidden in ((source, "added"), (target, "removed")):
        text = without_spaces("".join(text for kind, text in comparison.pieces if kind not in (hidden, "cut")))
        assert without_spaces(prompt) in [text, *(text + without_spaces(tail) for tail in tails)]
    lengths = [len(TOKENIZER.encode(prompt)) - 1 for prompt in (source, target)]
    assert list(comparison.lengths) == lengths
    shared, changed, added, removed = counts(comparison)
    assert [shared + changed + removed, shared + changed + added] == [min(n, LENGTH - 1) for n in lengths]
    assert 0 <= comparison.shared_fraction <= 1 and (source != target or not changed + added + removed)
    assert counts(compare_prompts(target, source, TOKENIZER)) == (shared, changed, removed, added)


def test_a_prompt_that_is_cut_says_what_the_model_does_not_see(caplog):
    prompt = "a red ball and a blue cube on a red floor beside a ball"
    assert len(SHORT.encode(prompt)) > 12
    _, counts = SHORT.pad([prompt])
    kept = SHORT.encode(prompt)[:11]  # and the end of the sequence
    assert counts == [12]
    cut = caplog.text.rpartition("without ")[2].strip()[1:-1]
    assert prompt.endswith(cut) and SHORT.encode(prompt.removesuffix(cut))[:-1] == kept


def test_the_marks_are_those_of_word_diff() -> None:
    comparison = compare_prompts("a red ball on the floor", "a blue ball on the red floor", TOKENIZER)
    assert comparison.marked == "a [-red-] {+blue+} ball on the {+red+} floor"
    assert counts(comparison) == (5, 1, 1, 0) and comparison.shared_fraction == pytest.approx(5 / 7)
    for count in ("5 tokens", "1 changed", "1 added", "0 removed"):
        assert count in comparison.summary


def test_what_the_model_truncates_is_marked() -> None:
    comparison = compare_prompts("a red ball " * 4, "a red ball " * 4 + "on the floor", SHORT)
    assert comparison.marked.startswith("a red ball a red ball a red ball a red […ball")
    assert comparison.lengths == (12, 15) and comparison.max_tokens == 11
    exact = compare_prompts("a red ball " * 4, "a red ball " * 5, PromptTokenizer(tokenizer_of(16), 16))
    assert "cut" in comparison.summary and "cut" not in exact.summary


# --- three prompts on common slots ----------------------------------------------------------------

PAD, EOS = 0, 1
ids = st.lists(st.integers(2, 6), max_size=10).map(lambda tokens: [*tokens, EOS])


@given(ids, ids, ids, st.integers(0, 9))
def test_three_prompts_share_their_slots(a: list[int], b: list[int], c: list[int], spare: int) -> None:
    length = max(map(len, (a, b, c))) + spare
    alignment = align_triple(a, b, c, length, PAD)
    padded = [[*one, *[PAD] * (length - len(one))] for one in (a, b, c)]
    assert all(sorted(order) == list(range(length)) for order in alignment.orders)
    rows = [[ids[k] for k in order] for ids, order in zip(padded, alignment.orders, strict=True)]
    slots, count, prefix = list(zip(*rows, strict=True)), alignment.tokens_shared, alignment.shared_prefix()
    tokens = slots[:count]
    assert all(x == y == z != PAD for x, y, z in tokens)
    assert all(slot == (PAD, PAD, PAD) for slot in slots[count:prefix])
    assert (PAD, PAD, PAD) not in slots[prefix:]
    assert (alignment.shared_prefix(False), prefix) == (count, count + alignment.paddings_shared)
    # In the order of the texts, the end of each with the others, and no more than any two of them share.
    assert all(list(order[:count]) == sorted(order[:count]) for order in alignment.orders)
    assert (EOS, EOS, EOS) in tokens
    assert count <= min(len(longest_common_subsequence(x, y)) for x, y in ((a, b), (b, c)))


@given(ids, ids, st.integers(0, 9))
def test_a_prompt_that_comes_twice_shares_what_the_pair_shares(a: list[int], b: list[int], spare: int) -> None:
    length = max(len(a), len(b)) + spare
    pair = align(a, b, length, PAD).tokens_shared
    for three in ((a, a, b), (a, b, b)):
        assert align_triple(*three, length, PAD).tokens_shared == pair
    same = align_triple(a, a, a, length, PAD)
    assert same.shared_prefix() == length and len(set(same.orders)) == 1


def test_three_prompts_longer_than_the_model_reads_are_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens"):
        align_triple([2, EOS], [2, EOS], [2, 3, 4, EOS], 3, PAD)


# --- files ----------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30).filter(
    lambda text: text.strip()
)


@given(texts, texts, st.lists(texts, max_size=5), st.none() | st.text(st.characters(exclude_categories=["Cs"])))
def test_a_file_of_prompts_comes_back(source: str, target: str, between: list[str], instruction: str | None) -> None:
    with TemporaryDirectory() as folder:
        path, prompts = Path(folder) / "prompts.json", PromptPair(source, target, tuple(between))
        write_prompts(path, prompts, instruction)
        assert read_prompts(path) == (prompts, instruction)
        marked = path.with_name("marked.json")
        marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save it
        assert read_prompts(marked) == (prompts, instruction)
        before = path.read_bytes()
        with pytest.raises(UserError, match="exists"):
            write_prompts(path, PromptPair("a", "b"), None)
        assert path.read_bytes() == before


GOOD = {"source": "a", "target": "b"}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (None, "No such file"),
        ("{", "JSON"),
        (b"\xff\xfe", "JSON"),
        ([], '"source"'),
        (GOOD, '"prompts"'),
        ({"prompts": {"source": "a"}}, '"target"'),
        ({"prompts": {**GOOD, "targett": "b"}}, "'targett'"),
        ({"prompts": {**GOOD, "target": " "}}, "--target-prompt"),
        ({"prompts": {**GOOD, "source": 3}}, "--source-prompt"),
        ({"prompts": {**GOOD, "intermediate": "b"}}, "intermediate prompts .*list"),
        ({"prompts": {**GOOD, "intermediate": ["x", ""]}}, "intermediate prompt is empty"),
        ({"prompts": {**GOOD, "intermediate": list("123456")}}, "^6 intermediate prompts"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path: Path, content: object, names: str) -> None:
    path = tmp_path / "prompts.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else
                         (content if isinstance(content, str) else json.dumps(content)).encode())  # fmt: skip
    with pytest.raises(UserError, match=names) as error:
        read_prompts(path)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="-o"):
        write_prompts(tmp_path / "no" / "folder.json", PromptPair("a", "b"), None)


# --- styles ---------------------------------------------------------------------------------------

# The text lengths of the published pipelines, in tokens; English has about as many in each of their tokenizers.
LIMITS = {
    "cogvideox": 226, "wan": 512, "skyreelsv2": 512, "ltxvideo": 128, "hunyuanvideo": 256, "hunyuanvideo15": 1000,
    "mochi": 256,
}  # fmt: skip
TOKENS_PER_WORD = 1.5  # T5's, the most in 90 published prompts of more than 30 words


def texts_of(style: PromptStyle) -> list[str]:
    return [text for _, text in style.describing] + [text for _, _, prompts in style.editing for text in prompts.chain]


def written_rules(name: str) -> str:
    """Return the rules that a style states, else those of its base."""
    style = tomllib.loads((STYLES / name / "style.toml").read_text())
    return style["rules"].strip() if "rules" in style else written_rules(style["base"])


def test_every_family_has_a_style() -> None:
    assert {family.style for family in FAMILIES} <= set(shipped_styles()) == {*LIMITS, "primitives"}


@pytest.mark.parametrize("name", LIMITS)
def test_a_styles_prompts_have_its_length_and_fit_the_model(name: str, data: Path) -> None:
    tokenizer = PromptTokenizer(T5Tokenizer.from_pretrained(data / "tokenizers" / "t5"), LIMITS[name])
    style = read_style(name)
    lengths = re.findall(r"(\d+) to (\d+) words", style.system)
    ((fewest, most),) = [(int(a), int(b)) for a, b in lengths]
    assert most * TOKENS_PER_WORD <= LIMITS[name]
    for text in texts_of(style):
        assert fewest <= len(text.split()) <= most, text
        assert len(tokenizer.encode(text)) <= LIMITS[name], text


@pytest.mark.parametrize("name", LIMITS)
def test_a_request_holds_a_styles_rules_and_examples_once(name: str) -> None:
    style, base = read_style(name), read_style("cogvideox")
    messages = style.build_messages([], "make it rain", intermediate=True)
    request = "\n".join(part for message in messages for part in message.parts if isinstance(part, str))
    own_rules = written_rules(name)
    rules_of_editing = base.system[base.system.index("- Write the target prompt") :]
    for text in (own_rules, rules_of_editing, base.progression, *texts_of(style)):
        assert request.count(text) == 1, text
    assert "{rules}" not in request and "{length}" not in request
    assert name == "cogvideox" or not set(texts_of(style)) & set(texts_of(base))


@pytest.mark.parametrize("name", shipped_styles())
def test_a_shipped_style_keeps_its_own_rules(name: str) -> None:
    style = read_style(name)
    assert len(style.describing) >= 2 and len(style.editing) >= 3
    texts = texts_of(style)
    tokenizer = PromptTokenizer(tokenizer_of(LENGTH, " ".join(texts)), LENGTH)
    for _, instruction, prompts in style.editing:
        assert find_faults(prompts, style, tokenizer) == [], instruction
        for one, other in pairwise(prompts.chain):
            assert compare_prompts(one, other, tokenizer).shared_fraction > MIN_SHARED + 0.2
    assert any(prompts.intermediate for _, _, prompts in style.editing)
    assert any(not prompts.intermediate for _, _, prompts in style.editing)


def test_the_built_in_models_style_is_its_grammar() -> None:
    from v2edit.primitives.parsing import is_caption

    style = read_style("primitives")
    for text in texts_of(style):
        assert is_caption(text), text


def own_style(folder: Path) -> Path:
    return Path(shutil.copytree(STYLES / "cogvideox", folder / "mine"))


def test_a_style_of_the_users_own_with_pictures(tmp_path: Path) -> None:
    mine = own_style(tmp_path)
    path = mine / "style.toml"
    path.write_text(path.read_text().replace('lighthouse.)"', 'lighthouse.)"\nimages = ["1.png"]'))
    Image.new("RGBA", (1500, 900)).save(mine / "1.png")
    style = read_style(str(mine))
    text, picture = style.build_messages([], "x")[1].parts[-2:]
    assert isinstance(text, str) and "lighthouse" in text
    assert isinstance(picture, Picture) and picture.data_url.startswith("data:image/jpeg")


def test_a_style_of_the_users_own_on_a_shipped_one(tmp_path: Path) -> None:
    example = '[[describing]]\nframes = "f"\nimages = ["1.png"]\nprompt = "p"'
    (tmp_path / "style.toml").write_text(f'base = "wan"\nlength = "20 to 30"\n{example}')
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    mine, wan = read_style(tmp_path), read_style("wan")
    assert mine.system == wan.system.replace("80 to 100", "20 to 30") != wan.system
    assert (mine.progression, mine.editing) == (wan.progression, wan.editing)
    ((frames, prompt),) = mine.describing
    assert prompt == "p" and isinstance(frames[1], Picture)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('length = "50', 'lenght = "50', "'length'"),
        ("system = ", 'base = "../styles/wan"\nsystem = ', r"'\.\./styles/wan' is no shipped style"),
        ("system = ", 'base = ["wan"]\nsystem = ', "no shipped style"),
        ("progression = ", 'base = "cogvideox"\nprogresion = ', "'progresion', which its base cogvideox has not"),
        ("system = ", "sytem = ", "'system'"),
        ("[[describing]]", "[[described]]", r"\[\[describing\]\]"),
        ("instruction = ", "instructions = ", r"'instruction' in \[\[editing\]\] example 1"),
        ('frames = "(Several frames of a video of a parked car.)"', "frames = 3", "example 2"),
        ("intermediate = [", "intermediate = [3, ", "TOML|'intermediate'"),
        ("system = ", "system ", "TOML"),
        ('lighthouse.)"', 'lighthouse.)"\nimages = ["none.png"]', "none.png"),
    ],
)
def test_an_incomplete_style_is_refused(tmp_path: Path, old: str, new: str, names: str) -> None:
    path = own_style(tmp_path) / "style.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=names) as error:
        read_style(str(path.parent))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_style(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file.*cogvideox,.* primitives"):
        read_style(str(tmp_path))


ONE = "A small dark blue car with round headlights is parked at the kerb of a tree-lined street in the low sun."
TRANSLATED = [
    "Une petite voiture bleu foncé aux phares ronds est garée au bord d'une rue bordée d'arbres, sous un soleil bas.",
    "Ein kleines dunkelblaues Auto mit runden Scheinwerfern steht am Rand einer Straße mit Bäumen in der tiefen Sonne.",
    "Un pequeño coche azul oscuro con faros redondos está aparcado junto a la acera de una calle, al sol bajo.",
    "Een kleine donkerblauwe auto met ronde koplampen staat geparkeerd langs de stoep van een straat in de lage zon.",
    "En liten mörkblå bil med runda strålkastare står parkerad vid kanten av en gata med träd i den låga solen.",
    "Маленький тёмно-синий автомобиль с круглыми фарами стоит у обочины улицы с деревьями под низким солнцем.",  # noqa: RUF001
    "一辆深蓝色的小汽车停在林荫道的路边，车灯是圆形的，阳光低垂。",  # noqa: RUF001
    "並木道の縁石に、丸いヘッドライトの小さな紺色の車が低い日差しの中で停まっている。",
]  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_the_language_is_that_of_the_examples(name: str) -> None:
    style = read_style(name)
    assert style.is_same_language(ONE)
    assert not any(style.is_same_language(text) for text in TRANSLATED)
    assert style.is_same_language("Ein roter Ball")  # too short to tell
    # A style in another language expects that one.
    chinese = PromptStyle("mine", "", "", ((("",), TRANSLATED[6]),), ())
    assert chinese.is_same_language(TRANSLATED[6]) and not chinese.is_same_language(ONE)


# --- published prompts ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(data: Path) -> list[dict]:
    rows = [json.loads(line) for line in (data / "prompts" / "edit_prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 459
    return rows


@pytest.fixture(scope="module")
def trained(rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    """A T5 tokenizer of word pieces, from a `spiece.model` as CogVideoX ships it."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter([row[key] for row in rows for key in ("source", "target") if row[key]]),
        model_prefix=str(folder / "spiece"), vocab_size=1000, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return PromptTokenizer(T5Tokenizer.from_pretrained(folder, extra_ids=0), LENGTH)


@pytest.mark.parametrize("pieces", ["words", "letters"])
def test_every_published_pair_lines_up(rows: list[dict], trained: PromptTokenizer, pieces: str) -> None:
    tokenizer = trained if pieces == "words" else TOKENIZER
    shares: list[float] = []
    for row in rows if pieces == "words" else rows[::4]:
        source, target = row["source"] or "", row["target"] or ""
        comparison, mirrored = compare_prompts(source, target, tokenizer), compare_prompts(target, source, tokenizer)
        shared, changed, added, removed = counts(comparison)
        assert counts(mirrored) == (shared, changed, removed, added)
        assert set(kind for kind, _ in comparison.pieces) <= MARKS.keys()
        if source and target:
            shares.append(comparison.shared_fraction)
    shares.sort()
    print(f"{pieces}: {len(shares)} pairs share {shares[len(shares) // 2]:.0%} in the median")
    assert shares[len(shares) // 2] > 0.7 and shares[len(shares) // 20] > MIN_SHARED


@pytest.mark.parametrize("name", LIMITS)
def test_published_prompts_are_in_the_language_of_the_style(rows: list[dict], name: str) -> None:
    style = read_style(name)
    texts = [row[key] for row in rows for key in ("source", "target") if row[key]]
    foreign = [text for text in texts if not style.is_same_language(text)]
    assert len(texts) > 800 and foreign == []
    assert sum(len(split_words(text)) > 12 for text in texts) > 400
