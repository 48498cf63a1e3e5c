-- Spreads calls over many functions, a few of them hot, as real traffic does (Zipf).
--
--   FN_IDS="ID1 ID2 ID3" wrk -t1 -c32 -d10s --latency -s loadtest/wrk/many-functions.lua http://127.0.0.1:8080
--
-- SKEW (default 1.0): 0 calls all equally often, larger makes the first ones hotter.

local requests, weights, total = {}, {}, 0

function init()
  local skew = tonumber(os.getenv("SKEW") or "1.0")
  for id in (os.getenv("FN_IDS") or ""):gmatch("%S+") do
    table.insert(requests, wrk.format("POST", "/invoke/" .. id, { ["Content-Type"] = "text/plain" }, "Ada"))
    total = total + 1 / (#requests ^ skew)
    table.insert(weights, total)
  end
  if #requests == 0 then
    error("set FN_IDS to the ids of the functions to call")
  end
  math.randomseed(1)
end

function request()
  local point = math.random() * total
  for index, weight in ipairs(weights) do
    if point <= weight then
      return requests[index]
    end
  end
  return requests[#requests]
end
