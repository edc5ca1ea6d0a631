-- Gives up a lane or a place in its row.
-- KEYS: lane, queue, seen, abandoned
-- ARGV: turn, how long the last token of an idle lane is remembered in ms, 1 if those who abandoned the lane before are seen to
local lane, turn = KEYS[1], ARGV[1]
redis.call('ZREM', KEYS[2], turn)
redis.call('ZREM', KEYS[3], turn)
if redis.call('HGET', lane, 'turn') == turn then
  redis.call('HDEL', lane, 'turn', 'until', 'note')
  if ARGV[3] == '1' then
    redis.call('DEL', KEYS[4])
  end
  redis.call('PEXPIRE', lane, ARGV[2])
end
return 1
