-- Renews a lease, or takes back a lane that Redis has forgotten.
-- KEYS: lane
-- ARGV: turn, token, note, then in ms: lease, how long a lane is remembered
local lane, turn, token = KEYS[1], ARGV[1], tonumber(ARGV[2])
local known = redis.call('HMGET', lane, 'turn', 'token')
local last = tonumber(known[2])
-- a higher token is a later holder's; the same one without its holder: the lane was left
if last and (last > token or (last == token and known[1] ~= turn)) then
  return 0
end
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
redis.call('HSET', lane, 'turn', turn, 'token', ARGV[2], 'until', now + tonumber(ARGV[4]), 'note', ARGV[3])
redis.call('PEXPIRE', lane, ARGV[5])
return 1
