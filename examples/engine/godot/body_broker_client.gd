# An engine's side of docs/engine-protocol.md, for Godot 3.2 and later 3.x: RESP over TCP, no plugin, never blocks a frame.
#
# Add it to the tree, set `arbiter` to an object with
#   reload(entities, tick)       the world as it is from now on; entities as in `snapshot`
#   decide(changes, atomic)      an array of outcomes, one a change, as in `outcome`
#   tick()                       the present tick; never less than before
# and call `start("redis://127.0.0.1:6379", "my-game")`. `observe(key, effects)` tells what happened by itself.
#
# Godot 4: PoolByteArray is PackedByteArray (slice(a, b) for subarray(a, b - 1), to_utf8_buffer() for to_utf8()), JSON.parse(t)
# is `var j = JSON.new(); j.parse(t)` with j.data, to_json(v) is JSON.stringify(v), OS.get_ticks_msec() is Time.get_ticks_msec(),
# StreamPeerTCP wants poll() before get_status(), and get_available_bytes() etc. are the same. It writes 5.0 for 5, which the hub takes.
extends Node

const VERSION = 1
const ORDERS = "state-change"
const REPORTS = "engine-report"
const FIELD = "json"
const HELLO_AGAIN_MS = 2000
const CONNECT_AGAIN_MS = 300
const READ_EVERY_MS = 10
const READ_MAX = 64
const BEATS = 3

var arbiter = null
var epoch = 0  # ours and loaded; 0 while there is none
var recorded = 0  # up to which of our messages of this epoch all is in the record

var _host = ""
var _port = 6379
var _password = ""
var _engine = ""
var _instance = ""
var _tcp = null
var _buffer = PoolByteArray()
var _waiting = []  # what each outstanding reply is for
var _reading = false
var _after = ""
var _connect_at = 0
var _read_at = 0
var _hello_at = 0
var _welcome = null
var _missing = 0
var _entities = []
var _answers = {}
var _answered = []  # [n, change_id] of what is not yet recorded
var _sent = 0
var _heard = 0
var _leased_at = 0
var _beat_at = 0


func start(url, engine):
	var rest = url.trim_prefix("redis://").split("/")[0]
	var at = rest.split("@")
	if at.size() == 2:
		_password = at[0].split(":")[-1]
	var address = at[at.size() - 1].split(":")
	_host = address[0]
	if address.size() == 2:
		_port = int(address[1])
	_engine = engine
	randomize()
	_instance = "%08x%08x" % [randi(), OS.get_ticks_usec()]


func observe(key, effects):
	if epoch == 0:
		return 0
	_say({"type": "observation", "tick": arbiter.tick(), "key": key, "effects": effects})
	return _sent


func stop():
	if _welcome != null:
		_say({"type": "bye"})
	_welcome = null
	epoch = 0
	_host = ""


func _process(_delta):
	if _host == "":
		return
	var now = OS.get_ticks_msec()
	if _tcp == null:
		if now >= _connect_at:
			_connect(now)
		return
	var status = _tcp.get_status()
	if status == StreamPeerTCP.STATUS_CONNECTING:
		return
	if status != StreamPeerTCP.STATUS_CONNECTED:
		_lose(now)
		return
	_receive()
	if _tcp != null and _after != "":
		_keep_time(now)


# The connection. After a lost one everything begins anew, as the protocol says.


func _connect(now):
	_connect_at = now + CONNECT_AGAIN_MS
	_tcp = StreamPeerTCP.new()
	if _tcp.connect_to_host(_host, _port) != OK:
		_lose(now)
		return
	_tcp.set_no_delay(true)
	_buffer = PoolByteArray()
	_waiting = []
	_reading = false
	_after = ""
	_over()
	_first = true


var _first = false


func _lose(now):
	_tcp.disconnect_from_host()
	_tcp = null
	_connect_at = now + CONNECT_AGAIN_MS
	_over()


func _command(words, what):
	var bytes = ("*%d\r\n" % words.size()).to_utf8()
	for word in words:
		var raw = str(word).to_utf8()
		bytes.append_array(("$%d\r\n" % raw.size()).to_utf8())
		bytes.append_array(raw)
		bytes.append_array("\r\n".to_utf8())
	_waiting.append(what)
	_tcp.put_data(bytes)


func _receive():
	if _first:
		_first = false
		if _password != "":
			_command(["AUTH", _password], "auth")
		_command(["XREVRANGE", ORDERS, "+", "-", "COUNT", "1"], "last")
	var available = _tcp.get_available_bytes()
	if available > 0:
		var got = _tcp.get_data(available)
		if got[0] != OK:
			_lose(OS.get_ticks_msec())
			return
		_buffer.append_array(got[1])
	while _tcp != null and _buffer.size() > 0:
		var reply = _parse(0)
		if reply == null:
			return
		var next = reply[1]
		_buffer = PoolByteArray() if next >= _buffer.size() else _buffer.subarray(next, _buffer.size() - 1)
		_take(_waiting.pop_front(), reply[0])


# One RESP2 value from this place on: [value, where the next begins], or null while it has not come whole.
func _parse(at):
	var end = at
	while end + 1 < _buffer.size() and not (_buffer[end] == 13 and _buffer[end + 1] == 10):
		end += 1
	if end + 1 >= _buffer.size():
		return null
	var line = "" if end == at + 1 else _buffer.subarray(at + 1, end - 1).get_string_from_utf8()
	var next = end + 2
	match char(_buffer[at]):
		"$":
			var length = int(line)
			if length < 0:
				return [null, next]
			if next + length + 2 > _buffer.size():
				return null
			var text = "" if length == 0 else _buffer.subarray(next, next + length - 1).get_string_from_utf8()
			return [text, next + length + 2]
		"*":
			if int(line) < 0:
				return [null, next]
			var items = []
			for _i in range(int(line)):
				var item = _parse(next)
				if item == null:
					return null
				items.append(item[0])
				next = item[1]
			return [items, next]
		"-":
			push_error("Redis: " + line)
			return [null, next]
	return [line, next]


# The conversation.


func _take(what, value):
	if what == "last":
		_after = "0-0" if value == null or value.empty() else value[0][0]
	elif what == "read":
		_reading = false
		if value != null:
			for entry in value[0][1]:
				_after = entry[0]
				if entry[1] != null:
					_hear(_message(entry[1]))


func _message(fields):
	for i in range(0, fields.size() - 1, 2):
		if fields[i] == FIELD and fields[i + 1] != "":
			var parsed = JSON.parse(fields[i + 1])
			if parsed.error == OK and parsed.result is Dictionary:
				return parsed.result
	return {}


func _keep_time(now):
	if _welcome == null:
		if now >= _hello_at:
			_hello_at = now + HELLO_AGAIN_MS
			_write({"type": "hello", "engine": _engine, "instance": _instance})
	else:
		if now - _leased_at > _welcome["lease_ms"]:
			# Nobody renewed the lease: somebody else may hold the world by now.
			_over()
		elif now >= _beat_at:
			_beat_at = now + _welcome["lease_ms"] / BEATS
			_say({"type": "heartbeat", "tick": arbiter.tick()})
	if not _reading and now >= _read_at:
		_reading = true
		_read_at = now + READ_EVERY_MS
		_command(["XREAD", "COUNT", READ_MAX, "STREAMS", ORDERS, _after], "read")


func _hear(order):
	var type = order.get("type", "")
	if type in ["welcome", "taken"]:
		if order.get("engine") != _engine or order.get("instance") != _instance:
			return
		if type == "welcome":
			_begin(order)
		elif _welcome == null:
			_hello_at = OS.get_ticks_msec() + order["retry_ms"]
	elif _welcome == null or order.get("epoch") != _welcome["epoch"]:
		return
	elif type == "ended" or (type == "refusal" and order["code"] == "old_epoch"):
		_over()
	elif type == "refusal":
		push_warning("The hub refused a message: " + order["message"])
	elif order.has("n") and order["n"] > _heard:
		if order["n"] != _heard + 1:
			_over()  # the stream lost something
			return
		_heard = order["n"]
		_obey(type, order)


func _obey(type, order):
	match type:
		"snapshot":
			_entities += order["entities"]
			_missing -= 1
			if _missing == 0:
				arbiter.reload(_entities, _welcome["tick"])
				_entities = []
				epoch = _welcome["epoch"]
		"lease":
			_leased_at = OS.get_ticks_msec()
		"recorded":
			recorded = order["upto"]
			while not _answered.empty() and _answered[0][0] <= recorded:
				_answers.erase(_answered.pop_front()[1])  # nobody asks for it again
		"change":
			_answer(order)


func _answer(order):
	var fresh = []
	for change in order["changes"]:
		if not _answers.has(change["change_id"]):
			fresh.append(change)
	if not fresh.empty():
		for outcome in arbiter.decide(fresh, order["atomic"]):
			_answers[outcome["change_id"]] = outcome
	for change in fresh:
		_answered.append([_sent + 1, change["change_id"]])
	var outcomes = []
	for change in order["changes"]:
		outcomes.append(_answers[change["change_id"]])
	_say({"type": "outcome", "tick": arbiter.tick(), "outcomes": outcomes})


func _begin(welcome):
	_over()
	_welcome = welcome
	_missing = welcome["snapshots"]
	_heard = 1
	_leased_at = OS.get_ticks_msec()
	if _missing == 0:
		arbiter.reload([], welcome["tick"])
		epoch = welcome["epoch"]


func _over():
	_welcome = null
	epoch = 0
	recorded = 0
	_entities = []
	_answers = {}
	_answered = []
	_sent = 0
	_heard = 0
	_hello_at = 0
	_beat_at = 0


func _say(message):
	_sent += 1
	message["epoch"] = _welcome["epoch"]
	message["n"] = _sent
	_write(message)


func _write(message):
	message["v"] = VERSION
	_command(["XADD", REPORTS, "*", FIELD, to_json(message)], "write")
