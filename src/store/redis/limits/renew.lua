-- Renews leases, also those that Redis has forgotten.
-- KEYS: places
-- ARGV: how long they last in ms, the leases
local time = redis.call('TIME')
local ends = math.floor(time[1] * 1000 + time[2] / 1000) + tonumber(ARGV[1])
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], ends, ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
