-- Counts one request in every window, or in none.
-- KEYS: rates (when each is whole again, in us), places (leases by their ends, in ms)
-- ARGV: lease, how long it lasts in ms, places at most (-1: they are not counted), 1 if it goes on without a place,
--       how many leases have ended, those, then of each rate: name, period and tolerance in us
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
local lasts, places, ended = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])

local COUNTED, STANDING, FULL, TOO_FAST = 0, 1, 2, 3
local verdict, held = COUNTED, 0
if ended > 0 then
  redis.call('ZREM', KEYS[2], unpack(ARGV, 6, 5 + ended))
end
if places >= 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now_ms)
  held = redis.call('ZCARD', KEYS[2])
  if held >= places then
    verdict = ARGV[4] == '1' and STANDING or FULL
  end
end

local whole = {}
for i = 6 + ended, #ARGV, 3 do
  local at = math.max(tonumber(redis.call('HGET', KEYS[1], ARGV[i])) or 0, now)
  whole[#whole + 1] = at
  if verdict < FULL and at - now > tonumber(ARGV[i + 2]) then
    verdict = TOO_FAST
  end
end

if verdict < FULL then
  if verdict == COUNTED and places >= 0 then
    redis.call('ZADD', KEYS[2], now_ms + lasts, ARGV[1])
    redis.call('PEXPIRE', KEYS[2], lasts)
    held = held + 1
  end
  local last = now
  for n = 1, #whole do
    local i = 6 + ended + 3 * (n - 1)
    whole[n] = whole[n] + tonumber(ARGV[i + 1])
    last = math.max(last, whole[n])
    redis.call('HSET', KEYS[1], ARGV[i], string.format('%.3f', whole[n]))
  end
  if #whole > 0 then
    redis.call('PEXPIRE', KEYS[1], math.ceil((last - now) / 1000) + 1)
  end
end

local reply = { verdict, held }
for n = 1, #whole do
  reply[n + 2] = math.ceil(whole[n] - now)
end
return reply
