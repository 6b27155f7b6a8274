-- What a script that writes goes on with: a batch of a writer is executed once, or not at all. ARGV
-- is, after what realm.lua says
--   5 the writer's id   6 the number of the batch   7 that of the last one whose answer it had
--   8 whether a restart of a server without replicas loses nothing
--   9 the incarnation of the realm when that answer was given
-- Each operation is {kind, how many payloads it has, ...}.
local KEPT_SECONDS = 30 * 86400

local number, acknowledged = tonumber(ARGV[6]), tonumber(ARGV[7])
local operations, cursor = cmsgpack.unpack(ARGV[4]), 9

local mark = base .. 'writer:' .. ARGV[5]
local kept, last, answers, behind = call('GET', mark), 0, {}, 0
if kept and kept ~= '' then
  last, answers, behind = unpack(cmsgpack.unpack(kept))
end
if last > number then
  return redis.error_reply('PERDURELATE ' .. last)
end
-- Whether the server lacks what the writer was told is there: said until it has heard that.
if last < number then
  behind = (acknowledged > last or (acknowledged < last and behind == 1)) and 1 or 0
end
-- The first write is one that is refused when memory is short, before anything else is written. A
-- batch that comes again writes too, so that a WAIT on its connection waits for that at least.
call('SET', mark, kept or '', 'EX', KEPT_SECONDS)

local function payload()
  cursor = cursor + 1
  return ARGV[cursor]
end

-- Return of each operation that has something to say {its place, a word, ...}: what `kinds` makes
-- of it now, or made of it when the batch came for the first time.
local function execute(kinds)
  if last == number then
    return answers
  end
  answers = {}
  for place, operation in ipairs(operations) do
    local after = cursor + operation[2]
    local answer = kinds[operation[1]](operation)
    if answer then
      answers[#answers + 1] = {place - 1, unpack(answer)}
    end
    cursor = after
  end
  call('SET', mark, cmsgpack.pack({number, answers, behind}), 'EX', KEPT_SECONDS)
  return answers
end
