"""Agents through the gateway, as the official clients manage them."""

import uuid

import pytest

from clients import Refused
from environment import MODEL


def test_an_agent_is_created_read_changed_and_deleted(client, direct):
    created = client.call("agents.create", name="first name", model=MODEL, memory_blocks=[], include_base_tools=False).value
    assert direct.call("agents.retrieve", created["id"]).value["name"] == "first name"

    assert client.call("agents.retrieve", created["id"]).value["id"] == created["id"]
    changed = client.call("agents.update", created["id"], name="second name").value
    assert changed["name"] == "second name"
    assert direct.call("agents.retrieve", created["id"]).value["name"] == "second name"

    client.call("agents.delete", created["id"])
    for asked in (direct, client):
        with pytest.raises(Refused) as refused:
            asked.call("agents.retrieve", created["id"])
        assert (refused.value.name, refused.value.status) == ("NotFoundError", 404)
        assert refused.value.body == {"detail": f"Agent with ID {created['id']} not found"}


def test_a_list_honours_its_query(client, direct):
    tag = f"tag {uuid.uuid4()} & co/é"
    made = [
        direct.call("agents.create", name=f"n{n}", model=MODEL, tags=[tag], include_base_tools=False).value["id"]
        for n in range(3)
    ]

    def ids(**query):
        return [agent["id"] for agent in client.call("agents.list", tags=[tag], order="asc", **query).value]

    assert ids() == made
    assert ids(limit=2) == made[:2]
    assert ids(limit=2, after=made[1]) == made[2:]
    assert client.call("agents.list", tags=["no such tag"]).value == []


def test_memory_blocks_are_read_and_written(client, direct, agent):
    block = client.call("blocks.create", label="human", value="Name: Ann").value
    client.call("agents.blocks.attach", block["id"], agent_id=agent.id)
    client.call("agents.blocks.update", "human", agent_id=agent.id, value="Name: Bea")
    assert client.call("agents.blocks.retrieve", "human", agent_id=agent.id).value["value"] == "Name: Bea"
    assert direct.call("blocks.retrieve", block["id"]).value["value"] == "Name: Bea"


def test_two_mebibytes_pass_in_both_directions(client, agent):
    text = "é" * (1 << 20)
    client.call("agents.update", agent.id, metadata={"text": text})
    assert client.call("agents.retrieve", agent.id).value["metadata"] == {"text": text}


def test_a_file_is_uploaded_whole(client, direct):
    folder = client.call("folders.create", name=f"folder {uuid.uuid4()}", embedding="openai/text-embedding-3-small").value["id"]
    text = "three mebibytes " * (3 << 16)
    client.upload("folders.files.upload", folder, "notes.txt", text)
    (stored,) = direct.call("folders.files.list", folder).value
    assert (stored["original_file_name"], stored["file_size"]) == ("notes.txt", len(text))
    client.call("folders.delete", folder)


def test_an_archive_remembers(client, direct):
    archive = client.call("archives.create", name="archive", embedding="openai/text-embedding-3-small").value["id"]
    passage = client.call("archives.passages.create", archive, text="a fact").value
    assert passage["text"] == "a fact"
    client.call("archives.delete", archive)
    with pytest.raises(Refused) as refused:
        direct.call("archives.retrieve", archive)
    assert refused.value.name == "NotFoundError"
