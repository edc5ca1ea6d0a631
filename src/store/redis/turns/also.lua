-- Puts more indexes to a turn.
-- KEYS: indexes
-- ARGV: turn, window in ms, then the note of each index
local turn = ARGV[1]
for i = 1, #KEYS do
  local found = redis.call('LINDEX', KEYS[i], 0)
  if not found or string.sub(found, 1, 16) ~= turn then
    redis.call('LPUSH', KEYS[i], turn .. ARGV[i + 2])
    redis.call('LTRIM', KEYS[i], 0, 3)
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
return 1
