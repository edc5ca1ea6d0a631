-- Says what this gateway has charged to budgets.
-- KEYS: budgets
-- ARGV: gateway, of each budget: period in ms, which one it is, this gateway's total in it
local time = redis.call('TIME')
local now_ms = math.floor(time[1] * 1000 + time[2] / 1000)
local reply = {}
for n = 1, #KEYS do
  local i = 3 * n - 1
  local period, total = budget(KEYS[n], now_ms, ARGV[1], tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2])
  reply[#reply + 1] = period
  reply[#reply + 1] = total
end
return reply
