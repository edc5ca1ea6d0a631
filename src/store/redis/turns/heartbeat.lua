-- A sign of life of a turn's owner; keeps what is known of the turn.
-- KEYS: state, log, indexes
-- ARGV: owner's lease in ms
local window = redis.call('HGET', KEYS[1], 'window')
if not window then
  return 0
end
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
redis.call('HSET', KEYS[1], 'owner', now + tonumber(ARGV[1]))
for i = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], window)
end
return 1
