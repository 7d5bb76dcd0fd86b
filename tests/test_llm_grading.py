"""Right and wrong answers in every notation, and the cases of other projects' test suites."""

from __future__ import annotations

import json
import os
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from etr.llm.rewards.answers import after_thinking, boxes, extract, marked, said
from etr.llm.rewards.forms import number
from etr.llm.rewards.mathematics import is_right

pytest.importorskip("math_verify")

HOUSE = Path(__file__).parent.parent
DATA = Path(os.environ.get("ETR_DATA", HOUSE.parent / "shared" / "data"))
CASES = DATA / "grading_cases_dev.json"
PAGE = HOUSE / "docs" / "grading.md"

RIGHT = [
    # fractions, decimals, percent, money, thousands
    (r"\boxed{\frac{1}{2}}", "1/2"), (r"\boxed{\dfrac12}", "0.5"), (r"\boxed{-\frac{3}{4}}", r"\frac{-3}{4}"),
    (r"\boxed{1\frac{1}{2}}", r"\frac{3}{2}"), ("1 1/2", "1.5"), (r"\boxed{\frac{9}{4}}", r"2\frac14"),
    (r"\boxed{0.333333}", r"\frac13"), (r"\boxed{0.\overline{3}}", r"\frac{1}{3}"), ("2.5e3", "2500"),
    (r"\boxed{2.5\times 10^3}", "2500"), (r"\boxed{10^{-3}}", "0.001"), (r"\boxed{25\%}", "25"),
    (r"\boxed{25\%}", "0.25"),
    ("50 percent", r"50\%"), (r"\boxed{\$18.90}", "18.90"), ("18.9", r"\$18.90"),
    ("The total is $1,234.50.", "1234.50"),
    (r"\boxed{1,000,000}", "1000000"), (r"\boxed{1{,}000}", "1000"), (r"\boxed{1\,000}", "1000"),
    ("#### 1,234", "1234"),
    # units and degrees
    (r"\boxed{5\text{ cm}}", "5"), (r"\boxed{5}", r"5\text{ cm}"), (r"\boxed{5\,\mathrm{cm}^2}", "5"),
    ("90 degrees", "90"),
    (r"\boxed{90^\circ}", "90"), (r"\boxed{\text{2 hours}}", "2"), ("So she has 42 apples left.", "42"),
    # signs, roots, constants, expressions
    (r"\boxed{-5}", "-5"), ("\N{MINUS SIGN}5", "-5"), (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
    (r"\boxed{2\sqrt2}", "sqrt(8)"),
    (r"\boxed{\frac{\pi}{2}}", "pi/2"), (r"\boxed{\frac{\sqrt{3}}{3}}", r"\frac{1}{\sqrt{3}}"),
    (r"\boxed{\pm 3}", "3,-3"),
    (r"\boxed{x^2-1}", "(x-1)(x+1)"), (r"\boxed{-5i+6}", "6 - 5i"), (r"\boxed{y=2x+3}", "2x+3"), ("x = 12", "12"),
    # sets, intervals, tuples, matrices
    (r"\boxed{\{1,2,3\}}", "3,2,1"), (r"\boxed{x=1 \text{ or } x=2}", "x=2, x=1"), (r"\boxed{x>2}", r"(2,\infty)"),
    (r"\boxed{(-\infty,-1)\cup(1,\infty)}", r"(-\infty, -1) \cup (1, \infty)"), (r"\boxed{x \in (2,\infty)}", "x > 2"),
    (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    # words and letters
    (r"\boxed{\text{Evelyn}}", "Evelyn"), ("The answer is Evelyn.", r"\text{Evelyn}"), ("Yes.", "yes"),
    ("The answer is (B).", "B"), (r"\boxed{\textbf{(C)}}", "C"), ("**Answer: D**", "D"), ("(D) 12", "D"),
    ("12", "(D) 12"),
    ("The correct answer is option A.", "A"), ("D", "(D) 12"),
    ("Answer is forty two.", "Answer is forty two."), (r"\boxed{1021}", "1021_3"), (r"\boxed{11_2}", "3_{10}"),
    # where the answer is
    (r"\boxed{\boxed{7}}", "7"), (r"first \boxed{3}, then \boxed{4}", "4"), (r"<answer>\boxed{5}</answer>", "5"),
    ("<answer>The answer is 5</answer>", "5"), ("<think>4</think> 5", "5"), ("The ratio is [1/2].", "0.5"),
    ("the final answer is 42 apples", "42"), ("The answer is **12**.", "12"), ("**Final Answer**\n\\boxed{12}", "12"),
    (r"\boxed{255}. Final Answer: The final answer is $10,455$. I hope it is correct.", "10455"),
]  # fmt: skip
WRONG = [
    (r"\boxed{3}", "4"), (r"\boxed{3,4}", "4"), (r"\boxed{4 \text{ or } 5}", "4"), ("the answer is 4 or 5", "4"),
    (r"\boxed{-5}", "5"), (r"\boxed{(1,2)}", "(2,1)"), (r"\boxed{[0,1)}", "(0,1)"), ("A", "B"), ("(A) or (B)", "B"),
    ("The answer is A, because B is wrong.", "B"), (r"\boxed{}", "5"), ("", "5"), ("5", ""), ("12 13 14 15", "12"),
    (r"\boxed{1000001}", "1000000"), (r"\boxed{0.0000001}", "0"), ("2.0e-9", "1.0e-9"), (r"\boxed{x+1}", "x-1"),
    ("<think>5", "5"), ("<think>5</think> 6", "5"), (r"\boxed{0.33}", r"\frac13"), (r"\boxed{3.14}", r"\pi"),
    (r"\boxed{\text{yes}}", "no"), (r"\boxed{5^2}", "5"), (r"\boxed{10\%}", "1"), (r"\boxed{1}", r"\frac12"),
    (r"1\frac12", r"\frac12"), (r"\boxed{x=5,y=6}", "5"), (r"\boxed{11_2}", "11_3"), (r"\boxed{\frac{1}{0}}", "0"),
    ("__import__('os').getcwd()", "5"), ("The answer is 5. No wait, the answer is 6.", "5"), (r"\boxed{7", "8"),
    (r"\boxed{12}", "12:30"), ("east", "west"), (r"\boxed{101_2}", "101_3"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "answer"), RIGHT)
def test_right_answers(completion: str, answer: str) -> None:
    assert is_right(completion, answer)


@pytest.mark.parametrize(("completion", "answer"), WRONG)
def test_wrong_answers(completion: str, answer: str) -> None:
    assert not is_right(completion, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{a {b} c}", "a {b} c"), (r"\boxed{\{1\}}", r"\{1\}"), (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{open", None),
        (r"\boxed  none", None), (r"\fbox{3}", "3"), ("<answer>1</answer><answer>2</answer>", "2"), ("####: 55", "55"),
        ("#### 5\nand so on", "5"), ("nothing", None), (r"\boxed{1} <answer>2</answer>", "2"), (r"\boxed{}", ""),
    ],
)  # fmt: skip
def test_marked(text: str, answer: str | None) -> None:
    assert marked(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 3.5. I hope so.", "3.5"), ("Answer: Paris", "Paris"), ("**Answer:** 7", "7"), ("nothing", None),
        ("the answer is $x=2.5$. Done", "$x=2.5$"), ("Answer:\n12", "12"),
    ],
)  # fmt: skip
def test_said(text: str, answer: str | None) -> None:
    assert said(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12 cm", 12), (r"\frac12", Fraction(1, 2)), (r"-1\frac{1}{2}", Fraction(-3, 2)), ("0,111", None),
        ("1,111", 1111),
        ("1e6", 10**6), ("1e999999999", None), (r"\frac{1}{0}", None), ("3x", None), ("1,23", None), ("12.34.56", None),
        ("9" * 5000, None), ("0.5 m/s", None), ("$5", 5), ("5 minutes", 5), (r"0.1\overline{6}", Fraction(1, 6)),
    ],
)  # fmt: skip
def test_number(text: str, value: Any) -> None:
    assert number(text) == value


def test_extraction_takes_time_in_proportion_to_the_text() -> None:
    """A pattern that backtracks would not come back from these."""
    for piece in ("<answer>", r"\boxed{", "####", "answer is ", "$", "1,", "[", "<|", "{", "a" * 50):
        text = piece * (200_000 // len(piece))
        after_thinking(text), boxes(text), extract(text)


def verdict(case: dict[str, Any]) -> bool:
    """Do we agree with a case? A reward is right or wrong here; credit for form, such as 0.1, is none."""
    kind, expected, function = case["kind"], case["expected"], (case.get("options") or {}).get("function", "")
    if kind in ("equivalence", "reward"):
        completion, gold = case.get("prediction") or case.get("completion") or "", case.get("gold") or ""
        wanted = expected is not None and float(expected) == 1.0
        return is_right(completion, gold) == wanted and not (expected is None and is_right(completion, gold))
    if kind == "normalize":  # we have no normal form to show: equal answers are equal in any of them
        raw = case.get("raw") or ""
        if function == "_to_float":
            value = number(raw)
            return (value is None) == (expected is None) and (value is None or float(value) == expected)
        return is_right(raw, str(expected)) if expected else not raw
    text = case.get("text") or ""
    if "box" in function or function == "extract_answer":
        found = boxes(text)[-1][1] if boxes(text) else None
        return found == (expected and re.sub(r"^\\boxed\{(.*)\}$", r"\1", expected))
    return extract(text) == expected


@pytest.mark.skipif(not CASES.exists(), reason="no grading cases; set ETR_DATA to the folder that has them")
def test_every_disagreement_with_other_suites_is_argued_on_the_page() -> None:
    cases = json.loads(CASES.read_text(encoding="utf-8"))["cases"]
    ours = {case["id"] for case in cases if not verdict(case)}
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| c0")]
    argued = {name for line in table for name in re.findall(r"\bc\d{4}\b", line)}
    assert ours == argued, f"not argued: {sorted(ours - argued)}; argued in vain: {sorted(argued - ours)}"
    assert len(ours) < 0.06 * len(cases)


@pytest.mark.skipif(not (DATA / "math500").exists(), reason="no benchmark files; set ETR_DATA")
def test_every_answer_of_a_benchmark_is_right_when_boxed_and_its_neighbours_are_not() -> None:
    from etr.llm.tasks import load_task

    items = load_task(str(DATA / "math500" / "test.jsonl")).items[:150]
    missed = [item.answer for item in items if not is_right(f"So it is $\\boxed{{{item.answer}}}$.", item.answer)]
    assert missed == []
    pairs = [(a.answer, b.answer) for a, b in pairwise(items)]
    confused = [(a, b) for a, b in pairs if is_right(f"$\\boxed{{{a}}}$", b) and (a, b) != ("5", "x=5")]
    assert confused == []
