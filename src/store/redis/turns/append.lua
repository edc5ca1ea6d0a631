-- Appends pieces to a log, each once, however often it is asked to.
-- KEYS: state, log
-- ARGV: window in ms, owner's lease in ms, number of the first piece, pieces and bytes of a log at most,
--       then kind and content of each piece
-- Pieces are entries of a stream whose ids count them, from 1-0 on.
local state, log = KEYS[1], KEYS[2]
local window, at = ARGV[1], tonumber(ARGV[3])
local most_pieces, most_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local count = redis.call('XLEN', log)
local known = redis.call('HMGET', state, 'bytes', 'cut', 'ended')
local bytes, is_cut, is_ended = tonumber(known[1]) or 0, known[2], known[3]
if count == 0 then
  bytes = 0
end
if at > count and not is_cut then
  return { 'missing', count }
end
for i = 6, #ARGV, 2 do
  local kind, piece = ARGV[i], ARGV[i + 1]
  at = at + 1
  if is_cut or at > count then
    local is_end = kind == 'end'
    if not is_end and (count >= most_pieces or bytes + #piece > most_bytes) then
      is_cut = '1'
      redis.call('HSET', state, 'cut', is_cut)
    end
    if (is_end and not is_ended) or not (is_end or is_cut) then
      count = count + 1
      bytes = bytes + #piece
      redis.call('XADD', log, count .. '-0', kind, piece)
    end
    if is_end then
      is_ended = '1'
      redis.call('HSET', state, 'ended', is_ended)
    end
  end
end
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
redis.call('HSET', state, 'owner', now + tonumber(ARGV[2]), 'window', window, 'bytes', bytes)
redis.call('PEXPIRE', state, window)
redis.call('PEXPIRE', log, window)
return { is_cut and 'cut' or 'kept', count }
