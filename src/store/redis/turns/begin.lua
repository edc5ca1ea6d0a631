-- Says that a turn is about to reach Letta, if it is still known as it was claimed.
-- KEYS: state
-- ARGV: owner's lease in ms
local window = redis.call('HGET', KEYS[1], 'window')
if not window then
  return 0
end
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
redis.call('HSET', KEYS[1], 'begun', 1, 'owner', now + tonumber(ARGV[1]))
redis.call('PEXPIRE', KEYS[1], window)
return 1
