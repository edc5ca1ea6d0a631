-- Makes indexes a turn's, all or none, and begins its state.
-- KEYS: state, exclusive indexes, latest indexes
-- ARGV: turn, window in ms, owner's lease in ms, number of exclusive indexes, then the note of each index
-- An index is a list of turn and note, the newest first.
local state, turn, window = KEYS[1], ARGV[1], ARGV[2]
for i = 2, tonumber(ARGV[4]) + 1 do
  local found = redis.call('LINDEX', KEYS[i], 0)
  if found and string.sub(found, 1, 16) ~= turn then
    return found
  end
end
for i = 2, #KEYS do
  local found = redis.call('LINDEX', KEYS[i], 0)
  -- asked a second time after the reply to the first was lost: once is enough
  if not found or string.sub(found, 1, 16) ~= turn then
    redis.call('LPUSH', KEYS[i], turn .. ARGV[i + 3])
    redis.call('LTRIM', KEYS[i], 0, 3)
  end
  redis.call('PEXPIRE', KEYS[i], window)
end
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
redis.call('HSET', state, 'owner', now + tonumber(ARGV[3]), 'window', window)
redis.call('PEXPIRE', state, window)
return false
