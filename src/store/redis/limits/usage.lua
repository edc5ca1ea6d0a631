-- Reads what one spender has used, and changes nothing: a period that is over counts as empty, and stays.
-- KEYS: as in count.lua
-- ARGV: of each budget: period in ms, of each rate: name
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
local reply = { now_ms, redis.call('ZCOUNT', KEYS[2], string.format('(%.0f', now_ms), '+inf') }
for n = 3, #KEYS do
  local total, all = 0, {}
  if redis.call('HGET', KEYS[n], 'period') == string.format('%.0f', math.floor(now_ms / ARGV[n - 2])) then
    all = redis.call('HGETALL', KEYS[n])
  end
  for i = 1, #all, 2 do
    if all[i] ~= 'period' then
      total = total + tonumber(all[i + 1])
    end
  end
  reply[#reply + 1] = total
end
for i = #KEYS - 1, #ARGV do
  local whole = tonumber(redis.call('HGET', KEYS[1], ARGV[i])) or 0
  reply[#reply + 1] = math.max(0, math.ceil(whole - now))
end
return reply
