-- Takes indexes from a turn where they are its own; with `forget` its log and state, too.
-- KEYS: state, log, indexes
-- ARGV: turn, forget or release
for i = 3, #KEYS do
  for _, found in ipairs(redis.call('LRANGE', KEYS[i], 0, -1)) do
    if string.sub(found, 1, 16) == ARGV[1] then
      redis.call('LREM', KEYS[i], 0, found)
    end
  end
end
if ARGV[2] == 'forget' then
  redis.call('DEL', KEYS[1], KEYS[2])
end
return 1
