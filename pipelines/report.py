"""What the quickstart found, for people: tables, and which of its claims the numbers bear out."""

from __future__ import annotations

from typing import Any

from infra import console

_SHOWN = ("m_j", "m_f")


def claims(scores: dict[str, Any]) -> dict[str, bool]:
    """What the story sets out to show, each as the numbers have it."""
    s4, ms3, synthetic = scores["s4_test"], scores["ms3_test"], scores["synthetic_test"]
    return {
        "pretrained beats untrained on S4 and MS3": all(
            t["pretrained"]["m_j"] > t["untrained"]["m_j"] for t in (s4, ms3)
        ),
        "pretrained beats training on the miniature alone on S4 and MS3": all(
            t["pretrained"]["m_j"] > t["finetune_only"]["m_j"] for t in (s4, ms3)
        ),
        "pretrained beats the sound-blind answer on two-object scenes": (
            s4["two_objects"]["m_j"] > s4["two_objects"]["m_j_sound_blind"]
        ),
        "a swapped sound costs at least a third of M_J on S4": (
            s4["sound_swapped"]["m_j"] < s4["pretrained"]["m_j"] * 2 / 3
        ),
        "the sounding one of two is picked in 90 % of the synthetic test": (
            synthetic["picked_right"] >= 0.9
        ),
        "either sound of a scene is followed in 80 %": synthetic["flips"] >= 0.8,
        "silence gives an empty mask in 95 %": synthetic["silence_empty"] >= 0.95,
    }


def tell(summary: dict[str, Any]) -> None:
    """The tables for people."""
    names = list(summary["scores"]["s4_test"])
    rows = [
        [name.replace("_", " ")]
        + [summary["scores"][t][name][key] for t in ("s4_test", "ms3_test") for key in _SHOWN]
        for name in names
        if name != "two_objects"
    ]
    heads = ("miniature, test", "S4 M_J", "S4 M_F", "MS3 M_J", "MS3 M_F")
    console.say("\n" + console.table(heads, rows))
    keys = ("m_j", "picked_right", "flips", "silence_empty")
    rows = [
        [name.replace("_", " ")] + [summary["scores"][name][key] for key in keys]
        for name in ("synthetic_test", "synthetic_unseen")
        if name in summary["scores"]
    ]
    heads = ("pretrained, two objects", "M_J", "picked right", "flips", "silence empty")
    console.say("\n" + console.table(heads, rows))
    console.say(
        "\nsynthetic test: known pictures and sounds in new scenes on unseen backgrounds. "
        "unseen: pictures and\nsounds that training never had; with one to three a class, "
        "nothing generalises from scratch.\n"
    )
    for claim, holds in summary["claims"].items():
        console.say(f"  {'yes' if holds else 'NO '}  {claim}")
    total = sum(summary["seconds"].values())
    console.say(f"\n{total:.0f} s in all; pictures: {summary['files']['contact_sheet']}\n")
