"""Made-up dialogues in the format of SGD as it is published."""

CITIES = ("Bern", "Basel", "Sion", "Chur")


def made_up_dialogue(number: int, service: str) -> dict:
    """A conversation in the published format: a table, then the city, then no preference for the kind."""
    city = CITIES[number % len(CITIES)]
    turns = [
        ("USER", f"A table for {number}.", [("INFORM", "seats", [str(number)])]),
        ("SYSTEM", "Where?", [("REQUEST", "city", [])]),
        ("USER", f"In {city}.", [("INFORM", "city", [city, city.upper()])]),
        ("SYSTEM", "Which kind?", [("REQUEST", "kind", [])]),
        ("USER", "I do not care.", [("INFORM", "kind", ["dontcare"])]),
    ]

    def frame(acts):
        names = ("act", "slot", "values")
        return [{"service": service, "actions": [{**dict(zip(names, a)), "canonical_values": []} for a in acts]}]

    shown = [{"speaker": who, "utterance": said, "frames": frame(acts)} for who, said, acts in turns]
    return {"dialogue_id": str(number), "services": [service], "turns": shown}
