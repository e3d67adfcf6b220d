# A game of three operations that shows the client, and passes `body-broker engine check`:
#   body-broker engine check --command "REDIS_URL={redis_url} godot3-server --path examples/engine/godot"
extends Node

const TICKS = 60

var _entities = {}
var _first_tick = 0
var _begun = 0


func _ready():
	Engine.target_fps = TICKS * 2
	var client = preload("res://body_broker_client.gd").new()
	client.arbiter = self
	add_child(client)
	client.start(OS.get_environment("REDIS_URL"), "godot-example")


func tick():
	return _first_tick + int((OS.get_ticks_msec() - _begun) * TICKS / 1000)


func reload(entities, from_tick):
	_first_tick = int(from_tick)
	_begun = OS.get_ticks_msec()
	_entities = {}
	for entity in entities:
		_entities[entity["id"]] = entity


func decide(changes, atomic):
	var before = _entities.duplicate(true)
	var outcomes = []
	var whole = true
	for change in changes:
		var said = _decide(change, before)
		said["change_id"] = change["change_id"]
		whole = whole and said["state"] == "applied"
		outcomes.append(said)
	if atomic and not whole:
		_entities = before
		for said in outcomes:
			if said["state"] == "applied":
				said["state"] = "rejected"
				said["rule"] = "batch"
				said.erase("effects")
	return outcomes


func _decide(change, before):
	if change["expires_in_ms"] <= 0:
		return {"state": "expired"}
	var op = change["op"]
	if not op in ["hurt", "heal", "set"]:
		return _rejected("unknown_operation")
	if not _entities.has(change["entity_id"]):
		return _rejected("unknown_entity")
	var entity = _entities[change["entity_id"]]
	if entity["removed"]:
		return _rejected("removed_entity")
	var version = before[entity["id"]]["version"]
	if change["expect_version"] != null and change["expect_version"] != version:
		return {"state": "conflict", "current_version": version}
	if op != "set" and entity["data"].get("alive", true) == false:
		return _rejected("dead_actor")
	return _apply(entity, op, change["payload"])


func _apply(entity, op, payload):
	if op == "set":
		return _applied(entity, "set", payload["fields"]) if payload.get("fields") is Dictionary else _rejected("bad_payload")
	if not typeof(payload.get("by")) in [TYPE_REAL, TYPE_INT]:
		return _rejected("bad_payload")
	var by = payload["by"] if op == "heal" else -payload["by"]
	var health = clamp(entity["data"].get("health", 100) + by, 0, 100)
	var patch = {"health": health}
	if health == 0:
		patch["alive"] = false
	return _applied(entity, "healed" if op == "heal" else "hurt", patch)


func _applied(entity, type, patch):
	entity["version"] += 1
	for field in patch:
		if patch[field] == null:
			entity["data"].erase(field)
		else:
			entity["data"][field] = patch[field]
	var effect = {"entity_id": entity["id"], "version": entity["version"], "type": type, "patch": patch.duplicate(true)}
	return {"state": "applied", "effects": [effect]}


func _rejected(rule):
	return {"state": "rejected", "rule": rule}
