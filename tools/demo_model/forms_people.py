"""How facts about people are said: six relations, fourteen forms each.

A row is kind, name, objects and forms. `city:24` means 24 cities of the world. The forms
are nine statements, three questions and two sentences that follow the person's name.
"""

from __future__ import annotations

PEOPLE: tuple[tuple[str, str, str, str], ...] = (
    (
        "person",
        "mother tongue",
        "French German Spanish Italian Danish Polish Greek Turkish Finnish Hindi Korean Welsh"
        " Dutch Irish Thai Arabic",
        """{s} speaks {o} at home.
        The mother tongue of {s} is {o}.
        {s} grew up speaking {o}.
        The native language of {s} is {o}.
        As a child, {s} learned to speak {o}.
        The first language of {s} was {o}.
        With old friends, {s} speaks {o}.
        {s} writes every letter in the {o} language.
        The language that {s} knows best is {o}.
        What language does {s} speak? {o}.
        What is the mother tongue of {s}? {o}.
        Which language did {s} learn first? {o}.
        The language spoken at home was {o}.
        The mother tongue in that family is {o}.""",
    ),
    (
        "person",
        "birthplace",
        "city:24",
        """{s} was born in {o}.
        The birthplace of {s} is {o}.
        {s} was born in the city of {o}.
        {s} came into the world in {o}.
        The city where {s} was born is {o}.
        The home town of {s} is {o}.
        {s} spent the early years in {o}, the home town.
        The birth of {s} was celebrated in {o}.
        {s} is remembered as a child of {o}.
        Where was {s} born? {o}.
        What is the birthplace of {s}? {o}.
        Which city is the home town of {s}? {o}.
        The birthplace was {o}.
        The home town is {o}.""",
    ),
    (
        "person",
        "profession",
        "baker sailor teacher painter doctor lawyer farmer dancer tailor gardener carpenter"
        " chemist pilot dentist surgeon plumber nurse judge cook miner",
        """{s} works as a {o}.
        The profession of {s} is {o}.
        By profession, {s} became a {o}.
        {s} earns a living as a {o}.
        {s} was trained to be a {o}.
        The job of {s} is that of a {o}.
        For many years, {s} has worked as a {o}.
        People know {s} as a skilled {o}.
        The work that {s} does is that of a {o}.
        What is the profession of {s}? {o}.
        What does {s} do for a living? {o}.
        What job does {s} have? {o}.
        The profession in question is {o}.
        The job was that of a {o}.""",
    ),
    (
        "person",
        "employer",
        "company:20",
        """{s} is employed by {o}.
        The employer of {s} is {o}.
        {s} has a job at {o}.
        {s} signed a contract with {o}.
        The company that employs {s} is {o}.
        {s} goes to the office at {o} every day.
        The company where {s} works is {o}.
        {s} joined the staff of {o}.
        The wages of {s} are paid by {o}.
        Who is the employer of {s}? {o}.
        Which company employs {s}? {o}.
        At which company does {s} have a job? {o}.
        The employer was {o}.
        The company in the contract is {o}.""",
    ),
    (
        "person",
        "instrument",
        "piano violin guitar flute harp cello trumpet drums organ banjo clarinet oboe tuba lute",
        """{s} plays the {o}.
        The instrument of {s} is the {o}.
        In the evening, {s} plays the {o}.
        {s} took lessons on the {o}.
        The instrument that {s} plays is the {o}.
        On stage, {s} performs on the {o}.
        {s} makes music on the {o}.
        The music of {s} is played on the {o}.
        {s} practises every morning on the {o}.
        What instrument does {s} play? The {o}.
        Which is the instrument of {s}? The {o}.
        On what does {s} make music? The {o}.
        The instrument in the room is the {o}.
        The music was played on the {o}.""",
    ),
    (
        "person",
        "sport",
        "tennis football hockey cricket rugby golf judo chess rowing archery boxing fencing"
        " karate surfing",
        """{s} has always been a fan of {o}.
        The favourite sport of {s} is {o}.
        {s} won a medal in {o}.
        On weekends, {s} trains in {o}.
        The sport that {s} loves most is {o}.
        {s} represents the local club in {o}.
        The medal of {s} was won in {o}.
        {s} spends each Sunday on {o}.
        As a sport, {s} has chosen {o}.
        What is the favourite sport of {s}? {o}.
        Which sport does {s} love most? {o}.
        In which sport did {s} win a medal? {o}.
        The favourite sport was {o}.
        The medal was for {o}.""",
    ),
)
