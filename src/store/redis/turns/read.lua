-- Reads on in a log.
-- KEYS: state, log
-- ARGV: number of pieces before, bytes at most (one piece more than fits)
local at, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'owner', 'ended', 'cut', 'begun')
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
local is_owned = known[2] or (known[1] and tonumber(known[1]) > now)
local is_begun = known[4] or redis.call('EXISTS', KEYS[2]) == 1
local reply = { known[1] and 1 or 0, is_owned and 1 or 0, known[3] and 1 or 0, is_begun and 1 or 0 }
local bytes = 0
while bytes < most do
  local found = redis.call('XRANGE', KEYS[2], (at + 1) .. '-0', '+', 'COUNT', 8)
  for _, entry in ipairs(found) do
    if bytes < most then
      local piece = entry[2]
      reply[#reply + 1] = piece[1]
      reply[#reply + 1] = piece[2]
      bytes = bytes + #piece[2]
      at = at + 1
    end
  end
  if #found < 8 then
    break
  end
end
return reply
