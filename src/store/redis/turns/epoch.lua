-- Says from when on lanes are given out, and that this Redis is there to be written to.
-- KEYS: epoch
-- ARGV: grace in ms, 1 if the caller has looked for this Redis before
-- The epoch holds the run id of the server, so that one that started again, or another in its place, is noticed even if
-- it has kept (some of) its data.
local epoch, grace = KEYS[1], tonumber(ARGV[1])
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)

-- where INFO is forbidden a restart is noticed by the missing epoch only
local run, up = '', grace
local info = redis.pcall('INFO', 'server')
if type(info) == 'string' then
  run = string.match(info, 'run_id:(%w+)') or ''
  up = (tonumber(string.match(info, 'uptime_in_seconds:(%d+)')) or 0) * 1000
end

local known = redis.call('HMGET', epoch, 'run', 'open')
if not known[2] then
  local open = now
  if ARGV[2] == '1' then
    open = now + grace
  elseif up < grace then
    -- started just now: empty because it is new, or because it lost what others know
    open = now + grace - up
  end
  redis.call('HSET', epoch, 'run', run, 'open', open)
elseif known[1] ~= run then
  redis.call('HSET', epoch, 'run', run, 'open', now + grace)
end
redis.call('PEXPIRE', epoch, 86400000)
return 1
