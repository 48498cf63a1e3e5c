-- Messages after a sequence number, in their order. ARGV: now, after, most messages to look at, most to answer,
-- function or '', 'due', 'later' or '', states. Answers where to go on, or '' at the end, and the messages.
local now, after, looked, max, fn, when = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
local entries = {}
for at = 7, #ARGV do
    local found =
        call('ZRANGEBYSCORE', base .. 'state:' .. ARGV[at], '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, looked)
    for place = 1, #found, 2 do
        entries[#entries + 1] = { tonumber(found[place + 1]), found[place] }
    end
end
table.sort(entries, function(one, other) return one[1] < other[1] end)
local rows, last = {}, ''
for place = 1, math.min(looked, #entries) do
    if #rows == max then
        break
    end
    local seq, member = entries[place][1], entries[place][2]
    last = string.format('%.0f', seq)
    if fn == '' or string.sub(member, 27) == fn then
        local fields = row(string.sub(member, 1, 26))
        local is_due = fields[1] and tonumber(fields[7]) <= now
        if fields[1] and (when == '' or (when == 'due') == is_due) then
            rows[#rows + 1] = fields
        end
    end
end
return { last, rows }
