-- Of one budget: says what this gateway has charged in its period, and learns what all have; the period by Redis' clock.
-- A gateway's total is written over, not added to, so that it can be told any number of times.
local function budget(key, now_ms, gateway, per, period, own)
  local current = string.format('%.0f', math.floor(now_ms / per))
  local known = redis.call('HGET', key, 'period')
  if known and known ~= current then
    redis.call('DEL', key)
  end
  if own ~= '0' and period == current then
    redis.call('HSET', key, 'period', current, gateway, own)
    redis.call('PEXPIRE', key, string.format('%.0f', (current + 1) * per - now_ms))
  end
  local total, all = 0, redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if all[i] ~= 'period' then
      total = total + tonumber(all[i + 1])
    end
  end
  return tonumber(current), total
end
