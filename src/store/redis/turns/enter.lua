-- Takes a lane, or a place in its row, or tells how that place is.
-- KEYS: epoch, lane, queue (by arrival), seen (by last asking), abandoned
-- ARGV: turn, waiting at most, then in ms: lease, presence, grace, how long a lane is remembered
local epoch, lane, queue, seen, abandoned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local turn = ARGV[1]
local max_waiting, lease, presence = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local grace, keep = tonumber(ARGV[5]), ARGV[6]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

local function held(token)
  redis.call('HSET', lane, 'turn', turn, 'token', token, 'until', now + lease)
  redis.call('PEXPIRE', lane, keep)
  redis.call('PEXPIRE', abandoned, keep)
  redis.call('ZREM', queue, turn)
  redis.call('ZREM', seen, turn)
  local reply = { 'held', token }
  for _, left in ipairs(redis.call('LRANGE', abandoned, 0, -1)) do
    reply[#reply + 1] = left
  end
  return reply
end

-- every gateway sees to the epoch before it comes here: without one Redis has lost its data since
local open = tonumber(redis.call('HGET', epoch, 'open'))
if not open then
  open = now + grace
  redis.call('HSET', epoch, 'run', '', 'open', open)
  redis.call('PEXPIRE', epoch, 86400000)
end

for _, gone in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', now - presence)) do
  redis.call('ZREM', queue, gone)
  redis.call('ZREM', seen, gone)
end

local known = redis.call('HMGET', lane, 'turn', 'token', 'until', 'note')
local holder, last = known[1], known[2]
if holder == turn then
  return held(last)
end

local is_free = not holder or tonumber(known[3]) <= now
local first = redis.call('ZRANGE', queue, 0, 0)[1]
if is_free and now >= open and (not first or first == turn) then
  if holder then
    redis.call('LPUSH', abandoned, holder .. string.format('%16s', last) .. (known[4] or ''))
    redis.call('LTRIM', abandoned, 0, 3)
    redis.call('HDEL', lane, 'note')
  end
  -- the time, so that it grows even over what is forgotten
  return held(string.format('%.0f', math.max(now_us, (tonumber(last) or 0) + 1)))
end

if not redis.call('ZSCORE', queue, turn) then
  local waiting = redis.call('ZCARD', queue)
  if waiting >= max_waiting then
    return { 'full', waiting }
  end
  local newest = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')[2]
  local arrived = math.max(now_us, (tonumber(newest) or 0) + 1)
  redis.call('ZADD', queue, string.format('%.0f', arrived), turn)
end
redis.call('ZADD', seen, now, turn)
redis.call('PEXPIRE', queue, 2 * presence)
redis.call('PEXPIRE', seen, 2 * presence)
return { 'waiting', redis.call('ZRANK', queue, turn) + (is_free and 0 or 1) }
