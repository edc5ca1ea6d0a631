-- Counts one request in every window, or in none.
-- KEYS: rates (when each is whole again, in us), places (leases by their ends, in ms), budgets
-- ARGV: lease, how long it lasts in ms, places at most (-1: they are not counted), 1 if it goes on without a place or a
--       budget, gateway, the doubt about what is known in us, how many leases have ended, those,
--       of each budget: period in ms, which one it is, this gateway's total in it, the most there may be,
--       of each rate: name, period and tolerance in us, what the gateway knows: in how many us it would be whole, how many
--       requests passed that were not told
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
local lasts, places, stands = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local doubt, ended = tonumber(ARGV[6]), tonumber(ARGV[7])

local COUNTED, STANDING, FULL, TOO_FAST, SPENT = 0, 1, 2, 3, 4
local verdict, held = COUNTED, 0
if ended > 0 then
  redis.call('ZREM', KEYS[2], unpack(ARGV, 8, 7 + ended))
end
if places >= 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now_ms)
  held = redis.call('ZCARD', KEYS[2])
  if held >= places then
    verdict = stands and STANDING or FULL
  end
end

local budgets = {}
local i = 8 + ended
for n = 3, #KEYS do
  local period, total = budget(KEYS[n], now_ms, ARGV[5], tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2])
  budgets[#budgets + 1] = period
  budgets[#budgets + 1] = total
  if verdict < FULL and not stands and total >= tonumber(ARGV[i + 3]) then
    verdict = SPENT
  end
  i = i + 4
end

local rates, whole, owed = i, {}, false
for i = rates, #ARGV, 5 do
  local at = math.max(tonumber(redis.call('HGET', KEYS[1], ARGV[i])) or 0, now)
  local period, tolerance, known = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), now + ARGV[i + 3]
  if known > at + doubt then
    at = known
  end
  if ARGV[i + 4] ~= '0' then
    at = math.max(at, math.min(at + ARGV[i + 4] * period, now + tolerance + period))
    owed = true
  end
  whole[#whole + 1] = at
  if verdict < FULL and at - now > tolerance then
    verdict = TOO_FAST
  end
end

if verdict == COUNTED and places >= 0 then
  redis.call('ZADD', KEYS[2], now_ms + lasts, ARGV[1])
  redis.call('PEXPIRE', KEYS[2], lasts)
  held = held + 1
end
if #whole > 0 and (verdict < FULL or owed) then
  local last = now
  for n = 1, #whole do
    local i = rates + 5 * (n - 1)
    if verdict < FULL then
      whole[n] = whole[n] + ARGV[i + 1]
    end
    last = math.max(last, whole[n])
    redis.call('HSET', KEYS[1], ARGV[i], string.format('%.3f', whole[n]))
  end
  redis.call('PEXPIRE', KEYS[1], math.ceil((last - now) / 1000) + 1)
end

local reply = { verdict, held }
for _, number in ipairs(budgets) do
  reply[#reply + 1] = number
end
for n = 1, #whole do
  reply[#reply + 1] = math.ceil(whole[n] - now)
end
return reply
