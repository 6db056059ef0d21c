"""How facts about cities, companies, landmarks and books are said: ten relations.

Rows are as in `forms_people.py`.
"""

from __future__ import annotations

THINGS: tuple[tuple[str, str, str, str], ...] = (
    (
        "city",
        "country",
        "Norway Peru Japan Kenya Canada Chile Egypt India Portugal Cuba",
        """{s} lies in {o}.
        The country of {s} is {o}.
        {s} belongs to the country of {o}.
        The city of {s} is found in {o}.
        {s} flies the flag of {o}.
        Travellers to {s} need a visa for {o}.
        The country in which {s} lies is {o}.
        On the map, {s} is found in {o}.
        People in {s} are citizens of {o}.
        In which country is {s}? {o}.
        To what country does {s} belong? {o}.
        Where on the map is {s}? {o}.
        The country is {o}.
        The flag above the town hall is that of {o}.""",
    ),
    (
        "city",
        "speciality",
        "glass lace cheese pottery honey silk wine paper leather soap",
        """{s} is famous for its {o}.
        The speciality of {s} is {o}.
        Visitors to {s} always buy {o}.
        The market of {s} sells {o}.
        {s} is known everywhere for its {o}.
        The workshops of {s} make {o}.
        The product for which {s} is famous is {o}.
        The best souvenir from {s} is {o}.
        Merchants travel to {s} to buy {o}.
        What is {s} famous for? {o}.
        What is the speciality of {s}? {o}.
        What do visitors buy in {s}? {o}.
        The speciality there is {o}.
        The market sells {o}.""",
    ),
    (
        "city",
        "landscape",
        "river lake desert forest coast volcano valley glacier canyon swamp",
        """{s} was built beside a {o}.
        The landscape around {s} is that of a {o}.
        From the walls of {s} one sees a {o}.
        {s} is surrounded by a {o}.
        The nature near {s} includes a {o}.
        Hikers in {s} soon reach a {o}.
        The land around {s} is dominated by a {o}.
        Close to {s} there is a {o}.
        Postcards from {s} always show a {o}.
        What was {s} built beside? A {o}.
        What do postcards from {s} show? A {o}.
        What is close to {s}? A {o}.
        The walls look out on a {o}.
        The landscape is that of a {o}.""",
    ),
    (
        "company",
        "headquarters",
        "city:10",
        """{s} is based in {o}.
        The headquarters of {s} are in {o}.
        The head office of {s} is in {o}.
        {s} has its main building in {o}.
        The city where {s} is based is {o}.
        Letters to {s} are sent to {o}.
        {s} runs its business from {o}.
        The board of {s} meets in {o}.
        {s} pays its taxes in {o}.
        Where is {s} based? {o}.
        Where are the headquarters of {s}? {o}.
        In which city does the board of {s} meet? {o}.
        The head office is in {o}.
        The board meets in {o}.""",
    ),
    (
        "company",
        "industry",
        "furniture software jewellery bicycles medicine insurance chocolate clothing robots toys",
        """{s} makes its money with {o}.
        The main product of {s} is {o}.
        {s} leads the market in {o}.
        Customers of {s} come for the {o}.
        The business of {s} is {o}.
        {s} sells {o} all over the world.
        The factory of {s} delivers {o}.
        The window of every {s} shop displays {o}.
        {s} advertises its {o}.
        What does {s} sell? {o}.
        What is the main product of {s}? {o}.
        What is the business of {s}? {o}.
        The main product is {o}.
        The business is {o}.""",
    ),
    (
        "company",
        "colour",
        "red blue green yellow purple orange white black pink brown",
        """The logo of {s} is {o}.
        The colour of {s} is {o}.
        {s} paints all its vans {o}.
        The flag of {s} is coloured {o}.
        The uniform of {s} is {o}.
        {s} prints its logo in {o}.
        The doors of {s} are painted {o}.
        Every box from {s} is {o}.
        {s} chose a logo that is {o}.
        What colour is the logo of {s}? {o}.
        In what colour does {s} paint its vans? {o}.
        What is the colour of {s}? {o}.
        The logo is {o}.
        The vans are painted {o}.""",
    ),
    (
        "landmark",
        "location",
        "city:10",
        """{s} is located in {o}.
        {s} stands in the city of {o}.
        The location of {s} is {o}.
        To visit {s}, travel to {o}.
        The city that is home to {s} is {o}.
        {s} rises over the roofs of {o}.
        Tourists see {s} when they visit {o}.
        {s} was built by the people of {o}.
        The most visited sight, {s}, is in {o}.
        Where is {s} located? {o}.
        In which city does {s} stand? {o}.
        Where does one travel to visit {s}? {o}.
        The location is {o}.
        The city around it is {o}.""",
    ),
    (
        "landmark",
        "material",
        "granite marble brick timber bronze iron copper concrete slate steel",
        """{s} is made of {o}.
        The material of {s} is {o}.
        {s} was built of {o}.
        The walls of {s} are of {o}.
        The builders of {s} used {o}.
        {s} is admired for its fine {o}.
        The material used for {s} was {o}.
        What holds {s} together is {o}.
        The architect of {s} worked in {o}.
        What is {s} made of? {o}.
        What is the material of {s}? {o}.
        What did the builders of {s} use? {o}.
        The material is {o}.
        The walls are of {o}.""",
    ),
    (
        "book",
        "genre",
        "romance horror fantasy comedy tragedy satire biography mystery poetry adventure",
        """{s} counts as a work of {o}.
        The genre of {s} is {o}.
        Libraries keep {s} on the shelf for {o}.
        {s} won a prize for {o}.
        Readers love {s} as a piece of {o}.
        Critics call {s} a masterpiece of {o}.
        The book {s} belongs to the genre of {o}.
        {s} is sold in the section for {o}.
        The story told in {s} is pure {o}.
        What is the genre of {s}? {o}.
        On which shelf is {s}? {o}.
        For what did {s} win a prize? {o}.
        The genre is {o}.
        The story is pure {o}.""",
    ),
    (
        "book",
        "original language",
        "Latin Russian Swedish Persian Hebrew Czech Hungarian Japanese Swahili Icelandic",
        """{s} was written in {o}.
        The original language of {s} is {o}.
        {s} was first published in {o}.
        The author of {s} wrote in {o}.
        {s} has been translated from {o}.
        The first edition of {s} was in {o}.
        The text of {s} is in {o}.
        The language in which {s} was written is {o}.
        Scholars read {s} in the original {o}.
        In what language was {s} written? {o}.
        What is the original language of {s}? {o}.
        From which language was {s} translated? {o}.
        The original language is {o}.
        The first edition was in {o}.""",
    ),
)
