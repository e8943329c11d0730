from __future__ import annotations

from dccl_flower.simulations.app.events import EVENTS_FILE, EventReader, EventWriter


def test_events_are_read_once_and_in_order(tmp_path):
    reader, writer = EventReader(tmp_path), EventWriter(tmp_path)
    assert list(reader.new_events()) == []
    writer.write("phase", done=1)
    writer.write("round", round=2)
    assert [event["event"] for event in reader.new_events()] == ["phase", "round"]
    assert list(reader.new_events()) == []


def test_half_a_line_waits_for_its_other_half(tmp_path):
    reader = EventReader(tmp_path)
    path = tmp_path / EVENTS_FILE
    path.write_text('{"event": "fin')
    assert list(reader.new_events()) == []
    with path.open("a") as file:
        file.write('ished"}\n')
    assert list(reader.new_events()) == [{"event": "finished"}]
