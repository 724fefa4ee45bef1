"""Made-up contexts of apps, for machines without real ones: a phone's screens with the right next tap, and bookings.

Law: they depend on the random source alone. They have what makes such contexts hard to compress: much that repeats, and
a few details (ids, names, times) that all later answers depend on.
"""

from __future__ import annotations

import random

from llmaas.records import Message

SYSTEM = {
    "document": "You are a reading assistant. Answer questions about the document the user has open.",
    "ui_automation": "You help users to complete tasks in mobile apps. Given a task and the elements on the screen, "
    "answer with the element that is to be tapped next.",
    "task_dialogue": "You are the assistant of a travel app. Help the user to book trains, tables and rooms.",
}
_LABELS = (
    *(
        "Settings",
        "Search",
        "Go back",
        "More options",
        "Add contact",
        "Delete",
        "Share",
        "Edit",
        "Favourites",
        "Sort by",
    ),
    *("Rename", "Dark theme", "Language", "Save", "Cancel", "New folder", "Select all", "Help", "About", "Sort by"),
    *("Stop", "Record", "Play", "Pause", "Next track", "Volume", "Alarm", "Snooze", "Add city", "Filter", "Export"),
)
_TAGS = ("button", "p", "checkbox", "input")
_PLACES = ("Leeds", "Porto", "Kyoto", "Bergen", "Lyon", "Tampa", "Graz", "Cork", "Perth", "Lima", "Turin", "Oslo")
_FOODS = ("Thai", "Italian", "Indian", "vegetarian", "Mexican", "seafood")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def screens(rng: random.Random, n: int = 24) -> list[Message]:
    """Tasks on screens; the answer is the id of the element that the task names."""
    turns = []
    for _ in range(n):
        labels = rng.sample(_LABELS, rng.randint(6, 10))
        wanted = rng.randrange(len(labels))
        rows = [f"<{rng.choice(_TAGS)} id={i} text='{label}'>" for i, label in enumerate(labels)]
        task = f"Task: use {labels[wanted]}\nScreen:\n" + "\n".join(rows)
        turns += [Message("user", task), Message("assistant", f"id={wanted}, action=tap, text={labels[wanted]}")]
    return turns


def trips(rng: random.Random, n: int = 24) -> list[Message]:
    """Bookings; each answer repeats what was asked for, and later questions are about earlier bookings."""
    turns, booked = [], []
    for _ in range(n):
        place, day, people = rng.choice(_PLACES), rng.choice(_DAYS), rng.randint(1, 6)
        time, number = f"{rng.randint(6, 22)}:{rng.choice(('00', '15', '30', '45'))}", rng.randint(1000, 9999)
        thing = rng.choice(("a train to", f"a table at a {rng.choice(_FOODS)} restaurant in", "a room in"))
        turns += [
            Message("user", f"I need {thing} {place} on {day} for {people}, around {time}."),
            Message("assistant", f"I found {thing} {place} on {day} at {time} for {people}. Shall I book it?"),
            Message("user", "Yes, please."),
            Message("assistant", f"Done. Your booking for {place} on {day} at {time} has the number {number}."),
        ]
        booked.append((place, day, number))
        place, day, number = rng.choice(booked)
        turns += [
            Message("user", f"What was the number of my booking in {place} on {day}?"),
            Message("assistant", f"Your booking in {place} on {day} has the number {number}."),
        ]
    return turns
