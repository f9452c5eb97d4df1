-- How Argo CD sees a ModelRoute, SpendBudget, RoutingProxy or ModelCatalog: as kstatus does, so `kubectl wait`, Flux and Argo CD agree.
--   Healthy      Ready, for the generation that is there. A route that is stepped down and a budget that is exhausted work as told.
--   Progressing  not yet: the operator has not looked, proxies have not followed, or something that is named is not there yet.
--   Degraded     only a change of the object itself, or of the operator's settings, can mend it: Stalled.
-- Argo CD gives a script no string library; this one needs none.
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function is(name, value)
  return conditions[name] ~= nil and conditions[name].status == value
end

local function because(name)
  local condition = conditions[name]
  if condition.message ~= nil and condition.message ~= "" then
    return condition.reason .. ": " .. condition.message
  end
  return condition.reason
end

if conditions.Ready == nil or status.observedGeneration == nil then
  return {status = "Progressing", message = "Stepdown has not looked at this object yet; is the operator running?"}
end
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Stepdown has not looked at this change yet"}
end
if is("Stalled", "True") then
  return {status = "Degraded", message = because("Stalled")}
end
if not is("Ready", "True") then
  return {status = "Progressing", message = because("Ready")}
end
if is("WithinBudget", "False") then
  return {status = "Healthy", message = because("WithinBudget")}
end
if is("SteppedDown", "True") then
  return {status = "Healthy", message = because("SteppedDown")}
end
return {status = "Healthy", message = because("Ready")}
